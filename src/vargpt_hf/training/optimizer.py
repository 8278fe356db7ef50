"""Muon beside AdamW, as one optimizer and as an option of trainers."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.training_args import OptimizerNames

from ..operations import layers_of


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on matrices of hidden layers, AdamW on embeddings, heads, norms and biases.

    Muon's step is the momentum of a matrix with all its singular values brought near one (`torch.optim.Muon`), so that directions that few
    examples ask for move as far as common ones. Steps are scaled to the size of AdamW's (arXiv 2502.16982, section 2.2): learning rate
    and weight decay mean the same to both. Muon keeps one moment of a matrix, AdamW two.

    Args:
        matrices: parameters (rows, columns) that Muon moves.
        others: all others, in the form that AdamW takes.
        lr: learning rate of both.
        weight_decay: of matrices; that of the others stands in their groups.
        adamw: AdamW's class.
        options: what else AdamW is given, such as `betas`.

    Raises:
        ValueError: a parameter for Muon that has not two dimensions.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        adamw: type[torch.optim.AdamW] = torch.optim.AdamW,
        **options: Any,
    ):
        self._parts = {
            "muon": torch.optim.Muon(matrices, lr, weight_decay, adjust_lr_fn="match_rms_adamw"),
            "adamw": adamw(others, lr, **options),
        }
        groups = [{**group, "optimizer": name} for name, part in self._parts.items() for group in part.param_groups]
        super().__init__(groups, {})

    def step(self, closure=None):
        """One step of both; `closure`, where given, is called once before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for name, part in self._parts.items():  # anew in each step, since loading replaces groups and state
            part.param_groups, part.state = [group for group in self.param_groups if group["optimizer"] == name], self.state
            part.step()
        return loss


class MuonOption:
    """Makes a trainer of Transformers train by [`MuonWithAdamW`] where its arguments say `muon`; before the trainer among the bases."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As in `Trainer`.

        Raises:
            ValueError: `muon` with weights that are sharded, another `optim` than AdamW, or no matrix to train.
        """
        if self.optimizer is not None or not getattr(self.args, "muon", False):
            return super().create_optimizer(model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("`muon` needs whole matrices, which FSDP and DeepSpeed spread over GPUs: leave it out, or train with DDP.")
        model = self.model if model is None else model
        adamw, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        if not (isinstance(adamw, type) and issubclass(adamw, torch.optim.AdamW)):
            other = OptimizerNames(self.args.optim).value
            raise ValueError(f"`muon` stands beside torch's AdamW, not beside optim={other!r}: leave out one of them.")
        self.optimizer = _muon_with_adamw(model, self.get_decay_parameter_names(model), self.args.weight_decay, adamw, options)
        return self.optimizer


def _muon_with_adamw(
    model: nn.Module, decaying: Iterable[str], weight_decay: float, adamw: type[torch.optim.AdamW], options: dict[str, Any]
) -> MuonWithAdamW:
    """The optimizer of what is trained in a model; `decaying` are names of parameters that shrink."""
    linears = {id(part.weight) for layer in layers_of(model) for part in layer.modules() if isinstance(part, nn.Linear)}
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices, decaying = [p for _, p in trained if id(p) in linears], set(decaying)
    if not matrices:
        raise ValueError("`muon` found no matrix of a hidden layer to train: leave it out.")
    others = [
        {"params": [p for name, p in trained if id(p) not in linears and (name in decaying) is decays], "weight_decay": decay}
        for decays, decay in ((True, weight_decay), (False, 0.0))
    ]
    options = dict(options)
    return MuonWithAdamW(matrices, others, lr=options.pop("lr"), weight_decay=weight_decay, adamw=adamw, **options)


__all__ = ["MuonOption", "MuonWithAdamW"]
