"""The fixed validation and test clips of the default weights. Committed before the first training, never changed.

40 % one object, 40 % two objects of which one sounds at a time, 20 % silence or a sound from off-screen; motion on.
Pictures and recordings are those of the split, so nothing in a test clip was in training.
"""

from __future__ import annotations

from avsseg.data.compose_pool import ComposeSettings

BENCHMARK = ComposeSettings(seconds=5, one=0.4, two=0.4, several=0.0, none=0.2, smallest=0.03, motion=1.0)
VAL_SEEDS = range(0, 200)
TEST_SEEDS = range(0, 400)
# frames and truth are drawn at this size; a model may work at its own, and its masks are scaled back
SIZE = 224
FRAME_TIMES = tuple(t + 0.5 for t in range(5))
