"""What MLflow runs to use an exported model: a copy of this file lies beside it. It needs transformers and torch.

Shapes: B batch, T tokens, V vocabulary.
"""

from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from transformers import AutoModelForCausalLM


class CausalLanguageModel(PythonModel):
    """Token ids (B, T) -> logits (B, T, V) in fp32."""

    def load_context(self, context: Any) -> None:
        """Open the folder that was logged."""
        self.model = AutoModelForCausalLM.from_pretrained(context.artifacts["model"]).eval()

    def predict(self, context: Any, model_input: Any, params: Any = None) -> np.ndarray:
        """Of whole sequences, all at once."""
        with torch.no_grad():
            return self.model(torch.as_tensor(np.asarray(model_input))).logits.float().numpy()


set_model(CausalLanguageModel())
