"""Everything of a stage that is trained, as one torch module: the model, and what its objectives have built for themselves.

A checkpoint, roles, the optimizer's groups and ranks see a system. The model's tensors keep their names in it; those of the
objective in place i of the stage are called objectives.<name>..., with the role objective.<name>.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from seedbed.core.errors import ConfigError
from seedbed.core.records import Progress, Role
from seedbed.core.roles import role_of, with_role

_MODEL = "model."


@runtime_checkable
class AfterStep(Protocol):
    """A module that has something to do when the optimizer has stepped: averages, masks, constants."""

    def after_step(self, progress: Progress) -> None: ...


class System(nn.Module):
    """A model with its objectives' modules, which are there under the names of their terms."""

    def __init__(self, model: Any, objectives: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.model = model
        for name, module in (objectives or {}).items():
            if not isinstance(module, nn.Module):
                raise ConfigError(
                    f"the objective {name} built {type(module).__name__}, which is no torch module; return one, or None"
                )
            with_role(module, Role("objective", None, name))
        self.objectives = nn.ModuleDict(dict(objectives or {}))

    @property
    def own(self) -> dict[str, nn.Module]:
        """What the objectives have built, by the names of their terms."""
        return dict(self.objectives.items())

    @property
    def roles(self) -> dict[str, Role]:
        """The role of every parameter by its name in the system."""
        own: Mapping[str, Role] = self.model.roles
        return {name: own[name] if name in own else role_of(self, name) for name, _ in self.named_parameters()}

    @property
    def all_roles(self) -> dict[str, Role]:
        """The role of everything that a checkpoint holds: parameters and buffers."""
        found = self.roles
        for name, _ in self.named_buffers():
            found[name] = role_of(self if name.startswith("objectives.") else self.model, name)
        return found

    @property
    def modules_alone(self) -> list[nn.Module]:
        """Model and objectives' modules, each for itself."""
        return [self.model, *self.objectives.values()]

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in super().named_parameters(*args, **kwargs):
            yield name.removeprefix(_MODEL), parameter

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        for name, buffer in super().named_buffers(*args, **kwargs):
            yield name.removeprefix(_MODEL), buffer

    @property
    def kept(self) -> set[str]:
        """The names of all that a checkpoint holds: parameters and buffers, but for those that are made anew."""
        return {name.removeprefix(_MODEL) for name in self.state_dict()}

    def after_step(self, progress: Progress) -> None:
        """Let every module do what it does when the optimizer has stepped."""
        for part in self.modules_alone:
            for module in part.modules():
                if isinstance(module, AfterStep):
                    module.after_step(progress)
