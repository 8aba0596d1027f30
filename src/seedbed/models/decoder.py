"""A decoder-only transformer of the Llama family: its settings, and what they settle to.

transformer.py computes it, cache.py continues texts with it, hugging_face.py reads and writes it as others do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from seedbed.core.bounds import check_ranges, within
from seedbed.core.errors import ConfigError, nearest
from seedbed.core.protocols import ModelKind, Neutral
from seedbed.models.cache import Stepper, stepper
from seedbed.models.hugging_face import folder_settings
from seedbed.models.rotary import rotary_frequencies
from seedbed.models.shape import Shape
from seedbed.models.sites import chosen
from seedbed.models.sizes import SIZES
from seedbed.models.transformer import Transformer

_HF = "hf:"


@dataclass(frozen=True, kw_only=True)
class Decoder(ModelKind):
    """Settings of a decoder. `size` names a preset, or in a recipe as `hf:FOLDER` a model folder; what is beside it wins."""

    neutral: ClassVar[Neutral] = {"attention_dropout": 0.0}
    size: str | None = None
    num_layers: int | None = within(1, 10_000, default=None)
    d_model: int | None = within(1, 2**20, default=None)
    num_heads: int | None = within(1, 2**16, default=None)
    num_kv_heads: int | None = within(1, 2**16, default=None)  # None: as many as heads
    head_dim: int | None = within(2, 2**16, default=None)  # None: d_model / num_heads
    d_ff: int | None = within(1, 2**24, default=None)  # None: 8/3 of d_model, rounded up to a multiple of 8
    vocab_size: int | None = within(
        1, 2**31 - 1, default=None
    )  # rows of embedding and head, at least; None: as many as the stream has ids
    mask: Literal["causal", "bidirectional"] = "causal"
    window: int | None = within(1, 2**31, default=None)  # positions that one sees back, itself included; None: all
    document_mask: bool = False  # whether positions see only their own document
    tied_embeddings: bool = False
    attention_bias: bool | Literal["qkv"] = False  # "qkv": of queries, keys and values only
    qk_norm: bool = False  # RMSNorm of every head's queries and keys, before they are rotated
    mlp_bias: bool = False
    head_bias: bool = False
    attention_dropout: float = within(0, 1, default=0.0, below=True)  # 0.1 is usual
    rope_base: float = within(1, 1e15, default=10_000.0)
    # of long-context models: `rope_type` linear or llama3, and its numbers
    rope_scaling: dict[str, float | str] | None = within(0, 1e12, default=None, above=True)  # noqa: RUF009
    norm_eps: float = within(0, 1, default=1e-5, above=True)
    init_std: float = within(0, 1e20, default=0.02)
    # site -> a layer, or several; with `at` (role patterns) a layer fills only the places that match, the first that does
    layers: dict[str, str | dict[str, Any] | list[str | dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in _preset(self.size).items():
            if getattr(self, name) == type(self).__dataclass_fields__[name].default:
                object.__setattr__(self, name, value)
        for name in ("num_layers", "d_model", "num_heads"):
            value = getattr(self, name)
            if value is None:
                raise ConfigError(f"a decoder needs a size ({', '.join(SIZES)}) or {name}")
        check_ranges(self)
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", -(-self.width * 8 // 3 // 8) * 8)
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        heads, kv_heads = self.num_heads or 1, self.num_kv_heads or 1
        if self.head_dim is not None and self.head_dim % 2:
            raise ConfigError(f"head_dim must be even (rotary pairs), got {self.head_dim}")
        if self.head_dim is None and (self.width % heads or self.width // heads % 2):
            raise ConfigError(f"d_model {self.d_model} must be an even multiple of num_heads {heads} (rotary pairs)")
        if heads % kv_heads:
            raise ConfigError(f"num_heads {heads} must be a multiple of num_kv_heads {kv_heads}")
        if self.window is not None and self.mask != "causal":
            raise ConfigError(f"a window needs a causal mask; got {self.window} and {self.mask}")
        rotary_frequencies(self.head_width, base=self.rope_base, scaling=self.rope_scaling)  # refuses what it does not know
        chosen(self.layers)

    @classmethod
    def settled(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return settings in which a model folder (`size: hf:FOLDER`) is replaced by its numbers; errors as it has them."""
        size = settings.get("size")
        if not (isinstance(size, str) and size.startswith(_HF)):
            return dict(settings)
        return {**folder_settings(size.removeprefix(_HF)), **{k: v for k, v in settings.items() if k != "size"}}

    @property
    def width(self) -> int:
        return self.d_model or 0

    @property
    def head_width(self) -> int:
        return self.head_dim or self.width // (self.num_heads or 1)

    @property
    def layout_free(self) -> bool:
        """Whether micro-batches and ranks change nothing but rounding: dropout draws by micro-batch."""
        layers = [choice.layer for some in chosen(self.layers).values() for choice in some]
        return self.attention_dropout == 0 and all(layer.layout_free for layer in layers)

    @property
    def causal(self) -> bool:
        return self.mask == "causal"

    @property
    def shape(self) -> Shape:
        """The numbers, all of them settled."""
        given = {f.name: getattr(self, f.name) for f in fields(Shape)}
        return Shape(**{**given, "head_dim": self.head_width})

    def build(self, *, vocab_size: int) -> Transformer:
        return Transformer(self.shape, vocab_size=max(vocab_size, self.vocab_size or 0))

    def cut_to(self, layers: int) -> "Decoder":
        return replace(self, num_layers=layers)

    def stepper(self, model: Any) -> Stepper:
        """Return what continues texts with a model of this kind. Raises ConfigError for a bidirectional one."""
        return stepper(model)


def _preset(size: str | None) -> dict[str, Any]:
    if size is None:
        return {}
    if size not in SIZES:
        raise ConfigError(f"no size {size!r}; {nearest(size, SIZES)} (or, in a recipe, hf:FOLDER)")
    return SIZES[size]
