"""What every `head:` section of a recipe has in common."""

from clip_itm.section import Section


class HeadSection(Section):
    def conflict(self, training) -> str | None:
        """A sentence where this head cannot work with the `training:` section of its recipe."""
        return None
