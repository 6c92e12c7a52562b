"""Students with a narrow latent: an encoder and a decoder in place of the first stages of a teacher."""

from splitcore.nn.net.narrow.student import FORMS, Narrow, Teacher

__all__ = ["FORMS", "Narrow", "Teacher"]
