"""An extension of WavAlign: a reward term, a codec, a layout and a recipe. Importing it registers the first two."""

from wavalign_example import codec as _codec  # noqa: F401
from wavalign_example import terms as _terms  # noqa: F401
