"""The two-layer perceptron of a transformer block."""

import torch
from torch import nn

from .conv_norm import linear_act
from .deploy import DeployLinear
from .inference import known_class

__all__ = ['Mlp']


@known_class
class Mlp(nn.Module):
    """Two linear layers with an activation between, over the last dimension; TinyViT's has its LayerNorm inside."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        act_layer: type[nn.Module],
        drop: float = 0.0,
        norm: bool = False,
        device=None,
        dtype=None,
    ) -> None:
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.norm = nn.LayerNorm(dim, **dd) if norm else nn.Identity()
        self.fc1 = nn.Linear(dim, hidden_dim, **dd)
        self.act = act_layer()
        self.drop1 = nn.Dropout(drop)
        self.fc2 = nn.Linear(hidden_dim, dim, **dd)
        self.drop2 = nn.Dropout(drop)

    def reparameterize(self) -> None:
        """Deploy form: see `timm.models.reparameterize_model`."""
        self.fc1 = DeployLinear.from_linear(self.fc1)
        self.fc2 = DeployLinear.from_linear(self.fc2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        x = self.act(self.fc1(x)) if torch.jit.is_scripting() else linear_act(self.fc1, self.act, x)
        return self.drop2(self.fc2(self.drop1(x)))
