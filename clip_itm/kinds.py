"""The methods: `head.kind` of a recipe, and the stem of its classes in the folder `methods/<kind>/`.

Such as `NpcHeadConfig` in its `configuration.py` and `NpcHead` in its `head.py`; what a method does besides its loss is
defined by an `NpcMethod` in a `method.py`, if there is one.
"""

METHODS = {
    "clip": "Clip",
    "npc": "Npc",
    "crcl": "Crcl",
    "crossfit": "Crossfit",
    "dive": "Dive",
    "aahr": "Aahr",
    "polyloss": "PolyLoss",
    "triplet": "Triplet",
    "siglip": "Siglip",
    "robust": "Robust",
    "osa": "Osa",
}
COMMANDS = {"bank": "npc"}  # verbs of `clip-itm` that belong to one method: `methods/<kind>/command.py`
IMPORTED_REGIONS = "crcl"  # head of a model that is imported from a program on region features
