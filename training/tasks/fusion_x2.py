"""Task of Fusion X2: see `span_training`."""

from pipeline.models.span_fusion import ARCHITECTURE, X2
from training.presets import Preset, Stage
from training.task_spec import TaskSpec
from training.tasks import span_wald
from training.tasks.span_convert import CONVERSIONS
from training.tasks.span_training import SpanTask

TASK = TaskSpec(
    name=X2,
    summary="fusion of the six 20 m bands to 10 m, guided by the 10 m bands",
    kind=X2,
    presets=(
        Preset(name=X2, task=X2, architecture=ARCHITECTURE, stages=(Stage("wald", 1.0, (), 1e-3),), minutes=9, batch=8),
    ),
    build=SpanTask,
    use="fusion",
    judge=span_wald.JUDGE,
    convert=CONVERSIONS[X2],
)
