"""What tests share: small models, recipes, data and runs; processes; damage; what is compared."""
