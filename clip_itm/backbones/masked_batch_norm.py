"""Batch norm over the rows that count, in all processes: padding is not a sample, and several processes equal one."""

import torch
from torch import Tensor, nn

from clip_itm.distributed import gather_with_gradient


class MaskedBatchNorm(nn.Module):
    """Like `nn.BatchNorm1d`, over the rows of [..., C] where a mask [...] is True, with statistics in at least float32.

    In training, mean and variance are those of the rows of all processes, with gradient, and the running statistics
    move by a tenth if at least two rows count.
    """

    def __init__(self, width: int, epsilon: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.epsilon, self.momentum = epsilon, momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` None: all rows count. Rows that do not count are normalised with the others' statistics."""
        with torch.autocast(rows.device.type, enabled=False):
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            if not self.training:
                mean, variance = self.running_mean, self.running_var
            else:
                mean, variance, count = batch_statistics(rows, mask)
                self._follow(mean.detach(), variance.detach(), count)
            return (rows - mean) * (variance + self.epsilon).rsqrt() * self.weight + self.bias

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        rate = torch.where(count > 1, self.momentum, 0.0)
        self.running_mean += rate * (mean.to(self.running_mean) - self.running_mean)
        unbiased = variance.to(self.running_var) * count / (count - 1).clamp(min=1)
        self.running_var += rate * (unbiased - self.running_var)


def batch_statistics(rows: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance [C] of the rows that count in [..., C], over all processes, and their number."""
    flat = rows.flatten(0, -2)
    counts = flat.new_ones(len(flat), 1) if mask is None else mask.reshape(-1, 1).to(flat.dtype)
    count = _total(counts.sum()).clamp(min=1)
    mean = _total((flat * counts).sum(dim=0)) / count
    variance = _total(((flat - mean).square() * counts).sum(dim=0)) / count
    return mean, variance, count


def _total(value: Tensor) -> Tensor:
    """The sum over all processes, with gradient."""
    return gather_with_gradient(value[None]).sum(dim=0)
