"""`narrow`: a student whose encoder is the head, and whose decoder, with the rest of its teacher, is the tail.

The decoder imitates the teacher's latent at the teacher's cut. So `teacher.head(x)` is what `tail.decoder(head(x))` is trained
towards, `tail.rest` is `teacher.tail` with the same names within, and a later stage of either can be asked for by that name.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from splitcore.codec.base import STRICT
from splitcore.errors import ScenarioError
from splitcore.nn.net.cifar_resnet import CifarResNet
from splitcore.nn.net.lenet import SIDE, LeNet
from splitcore.nn.net.narrow import entropic, layer1, ver, vgg16_fc
from splitcore.nn.net.narrow.form import Form, Size
from splitcore.nn.net.parts import built, initialised
from splitcore.nn.net.resnet import ResNet
from splitcore.nn.net.shape import shape_after
from splitcore.nn.net.vgg import Vgg

Teacher: TypeAlias = Annotated[CifarResNet | LeNet | ResNet | Vgg, Field(discriminator="kind")]
FormName: TypeAlias = Literal["ver1", "ver2", "ver3", "layer1", "entropic", "vgg16_fc", "vgg16_fc_lite"]
FORMS: dict[FormName, tuple[Form, Form]] = {
    "ver1": (ver.encoder1, ver.decoder1),
    "ver2": (ver.encoder2, ver.decoder2),
    "ver3": (ver.encoder3, ver.decoder3),
    "layer1": (layer1.encoder, layer1.decoder),
    "entropic": (entropic.encoder, entropic.decoder),
    "vgg16_fc": (vgg16_fc.encoder, vgg16_fc.decoder),
    "vgg16_fc_lite": (vgg16_fc.lite_encoder, vgg16_fc.lite_decoder),
}
"""encoder and decoder"""
LEAST_WIDTH = 64


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Narrow:
    """The arguments that build a head and a tail."""

    kind: Literal["narrow"] = "narrow"
    teacher: Teacher
    """the network whose stages up to its cut are replaced"""
    form: FormName = "ver2"
    channels: Annotated[int, Field(ge=1, le=256)] = 12
    """b: channels of the latent"""
    width: Annotated[int, Field(ge=4, le=4096)] | None = None
    """channels of the decoder's widest layers; none: those of the teacher's latent as published, but at least 64"""

    @property
    def cut_at(self) -> str:
        return f"after the encoder of {self.form}, whose decoder ends where {self.teacher.kind} is {self.teacher.cut_at}"

    def head(self, input_shape: tuple[int, int, int], mean: Sequence[float], std: Sequence[float]) -> nn.Module:
        """Images [k, C, H, W] in [0, 1] to latents [k, b, h, w], normalised as the teacher's."""
        self.latent_shape(input_shape)
        seen = self._seen(input_shape)
        parts: dict[str, Callable[[], nn.Module]] = {
            "normalise": lambda: self.teacher.pixels(mean, std),
            "encoder": lambda: self._encoder(seen),
        }
        if seen != input_shape:
            parts = {"resize": lambda: nn.Upsample(seen[1:], mode="bilinear"), **parts}
        return built(parts)

    def tail(self, latent_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Latents [k, b, h, w] to logits [k, classes]."""
        try:
            imitated = shape_after(self._decoder, latent_shape)
        except ValueError as error:
            raise ScenarioError(
                f"narrow: expected latents [{self.channels}, h, w] for the decoder of {self.form}, got {list(latent_shape)}"
            ) from error
        decoder = initialised(self._decoder())
        return nn.Sequential(OrderedDict(decoder=decoder, rest=self.teacher.tail(imitated, classes)))

    def latent_shape(self, input_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """[b, h, w] of the latent for images [C, H, W]. Raises ScenarioError."""
        theirs = self.teacher.latent_shape(input_shape)
        seen = self._seen(input_shape)
        try:
            latent = shape_after(lambda: self._encoder(seen), seen)
            ours = shape_after(self._decoder, latent)
        except ValueError as error:
            raise ScenarioError(
                f"narrow: {self.form} cannot replace {self.teacher.kind} up to {list(theirs)} for images {list(input_shape)}: "
                f"{error}"
            ) from error
        if ours != theirs:
            raise ScenarioError(
                f"narrow: expected {list(theirs)} from the decoder, what {self.teacher.kind} is {self.teacher.cut_at}, got "
                f"{list(ours)} of images {list(input_shape)}: choose another form, cut of the teacher or size of images"
            )
        return latent

    def _seen(self, input_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """[C, H, W] of the images that the encoder sees: as its teacher does, of the teacher's size where that resizes."""
        if isinstance(self.teacher, LeNet) and self.teacher.resize:
            return (input_shape[0], SIDE, SIDE)
        return input_shape

    def _encoder(self, input_shape: tuple[int, int, int]) -> nn.Sequential:
        ratio = round(input_shape[1] / self.teacher.latent_shape(input_shape)[1])
        return nn.Sequential(*FORMS[self.form][0](self._size(input_shape[0], ratio)))

    def _decoder(self) -> nn.Sequential:
        return nn.Sequential(*FORMS[self.form][1](self._size(image=0, ratio=0)))

    def _size(self, image: int, ratio: int) -> Size:
        out = self.teacher.channels
        width = self.width if self.width is not None else max(out, LEAST_WIDTH)
        return Size(image=image, b=self.channels, width=width, out=out, ratio=ratio)
