"""Floor 6: what a run needs and costs on a cluster, predicted from the model's shape or from one measured step."""

from etr.plan.job import Job
from etr.plan.models import Shape, shape_of
from etr.plan.predict import Prediction, predict

__all__ = ["Job", "Prediction", "Shape", "predict", "shape_of"]
