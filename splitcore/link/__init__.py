"""Link shaping: wifi, lte, 5g, lan, a profile of one's own, or one after another."""

from splitcore.link.line import PROFILES, Line, Link, LinkName, LinkProfile, profile_of
from splitcore.link.relay import LinkRelay, shaped
from splitcore.link.steps import LinkInTime, Step, Steps, schedule_of

__all__ = [
    "PROFILES",
    "Line",
    "Link",
    "LinkInTime",
    "LinkName",
    "LinkProfile",
    "LinkRelay",
    "Step",
    "Steps",
    "profile_of",
    "schedule_of",
    "shaped",
]
