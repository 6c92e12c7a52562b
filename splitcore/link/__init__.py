"""Link shaping: wifi, lte, 5g, lan, or a profile of one's own."""

from splitcore.link.line import PROFILES, Line, Link, LinkName, LinkProfile, profile_of
from splitcore.link.relay import LinkRelay, shaped

__all__ = ["PROFILES", "Line", "Link", "LinkName", "LinkProfile", "LinkRelay", "profile_of", "shaped"]
