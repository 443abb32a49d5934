"""Keys of recipes that were called otherwise in version 0.1.0.

In what a user writes they are errors that name the new one; what this program wrote is read under the new ones. Hashes
are still taken over the old ones, so that they name the same recipes and models as ever.
"""

from typing import Any

# by section of the recipe
RENAMED = {
    "data": {
        "max_photos": "max_images",
        "train_photos": "train_images",
        "val_photos": "val_images",
        "test_photos": "test_images",
        "whole_dev": "whole_val",
    },
    "head": {"same_photo": "same_image"},
    "training": {"captions_per_photo": "captions_per_image", "rate_multipliers": "lr_multipliers"},
}


def with_new_names(section: str, content: dict[str, Any]) -> dict[str, Any]:
    """What an earlier version saved of a section, under today's names."""
    return {RENAMED.get(section, {}).get(name, name): value for name, value in content.items()}


def with_old_names(section: str, content: dict[str, Any]) -> dict[str, Any]:
    """The reverse, for hashes."""
    old = {new: old for old, new in RENAMED.get(section, {}).items()}
    return {old.get(name, name): value for name, value in content.items()}
