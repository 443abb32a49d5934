"""Keys of recipes that had other names in version 0.1.0.

In what a user writes, an old name is an error that gives the new one; what this program wrote is read under the new
names. Hashes are still computed over the old ones, so that recipes and models keep their hashes.
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
    """A section that an earlier version saved, under today's names."""
    return {RENAMED.get(section, {}).get(name, name): value for name, value in content.items()}


def with_old_names(section: str, content: dict[str, Any]) -> dict[str, Any]:
    """A section under the names of version 0.1.0, for hashes."""
    old = {new: old for old, new in RENAMED.get(section, {}).items()}
    return {old.get(name, name): value for name, value in content.items()}
