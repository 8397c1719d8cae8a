from zkit_hinge import Hinge

from zephyr_kit.testing import ObjectiveLaws


class TestHinge(ObjectiveLaws):
    # Small enough that random pairs lie within the margin, where there is something to learn.
    objective = Hinge(beta=0.01)
