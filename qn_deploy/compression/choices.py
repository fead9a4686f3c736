"""The choices of forms that a budget tries.

What is measured of each weight alone adds up only where little is lost: later layers make up for a part of what earlier ones lose, of some
more than of others. So several choices are made, and what each loses as a whole decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import log

from qn_deploy.compression.effects import Form
from qn_deploy.compression.knapsack import Choice, Knapsack
from qn_deploy.recipe import Float, Int8, Method, Recipe, Rule


class Choices:
    """The best choices of all sizes, by what was measured, and rivals of theirs.

    Args:
        forms: of each weight.
    """

    def __init__(self, forms: Sequence[Sequence[Form]]) -> None:
        self._forms = forms
        self._sizes = [[form.size for form in each] for each in forms]
        self._losses = [[form.loss for form in each] for each in forms]
        self.measured = Knapsack(self._sizes, self._losses)
        self._evened = Knapsack(self._sizes, [[form.loss / _scale(each) ** 0.5 for form in each] for each in forms])

    @property
    def ways(self) -> tuple[Callable[[int], Choice | None], ...]:
        """What gives a choice within so many bytes, or None: the best one by what was measured first."""
        return self.measured.best, self._even, self._alike

    def _even(self, budget: int) -> Choice | None:
        """The best one if weights differ less in how the outputs feel them: by the root of what was measured."""
        return self._as_measured(self._evened, budget)

    def _alike(self, budget: int) -> Choice | None:
        """One method for all weights, that whose size is nearest to the budget, but for the fewest that have to leave it."""
        methods: dict[Method, None] = {form.method: None for each in self._forms for form in each if not isinstance(form.method, Float)}
        found = [[_place(each, method) for each in self._forms] for method in methods]
        if not found or budget <= 0:
            return None
        base = min(found, key=lambda places: abs(log(self._size(places) / budget)))
        leaving = sum(losses[place] for losses, place in zip(self._losses, base, strict=True)) or 1.0
        costs = [
            [loss + leaving * (form != place) for form, loss in enumerate(losses)] for losses, place in zip(self._losses, base, strict=True)
        ]
        return self._as_measured(Knapsack(self._sizes, costs), budget)

    def _size(self, places: Sequence[int]) -> int:
        return sum(sizes[place] for sizes, place in zip(self._sizes, places, strict=True))

    def _as_measured(self, knapsack: Knapsack, budget: int) -> Choice | None:
        choice = knapsack.best(budget)
        return None if choice is None else self.measured.choice(choice.forms, budget)


def recipe_of(methods: Mapping[str, Method]) -> Recipe:
    """A rule for each weight by its name; the method that most have is the last rule, for all that no other matches."""
    usual = Counter(methods.values()).most_common(1)[0][0]
    rules = [Rule(method, name=name) for name, method in methods.items() if method != usual]
    return Recipe((*rules, *([] if isinstance(usual, Float) else [Rule(usual)])), title="budget")


def _place(forms: Sequence[Form], method: Method) -> int:
    """The form that a recipe of one method gives a weight: int8 where it can't have that."""
    methods = [form.method for form in forms]
    return methods.index(method if method in methods else Int8())


def _scale(forms: Sequence[Form]) -> float:
    """How the outputs feel a weight: what its best form of 2 bits a weight or fewer loses; of its smallest form, if none has so few."""
    few = max(form.size for form in forms) / 16  # the largest is float, of 32 bits
    small = [form for form in forms if form.size <= few] or [min(forms, key=lambda form: form.size)]
    return min(form.loss for form in small) or 1.0
