"""Task of Fusion X4: see `span_training`."""

from pipeline.models.span_fusion import ARCHITECTURE, X4
from training.presets import Preset, Stage
from training.task_spec import TaskSpec
from training.tasks import span_wald
from training.tasks.span_convert import CONVERSIONS
from training.tasks.span_training import SpanTask

TASK = TaskSpec(
    name=X4,
    summary="fusion of the six 20 m bands from 10 m to 2.5 m, guided by super-resolved RGBN",
    kind=X4,
    presets=(
        Preset(name=X4, task=X4, architecture=ARCHITECTURE, stages=(Stage("wald", 1.0, (), 1e-3),), minutes=8, batch=8),
    ),
    build=SpanTask,
    use="fusion",
    judge=span_wald.JUDGE,
    convert=CONVERSIONS[X4],
)
