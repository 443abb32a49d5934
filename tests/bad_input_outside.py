"""Bad input of what is seen outside: the app, the card."""

from bad_input import case


@case("an app that is to answer under what is no name")
def _(place):
    return ["app", "--model", str(place / "model"), "--allow-host", "https://photos.example.org"]
