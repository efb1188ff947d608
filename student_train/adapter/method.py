"""What a run is called, from its recipe alone: the paper's names, and plain words for the rest."""

from shared.recipe import Recipe

LORA, MEDALIGN = "LoRA", "MEDALIGN"


def method_of(recipe: Recipe) -> str:
    """Return the method that a recipe trains.

    `LoRA` and `MEDALIGN` are the paper's; so are its ablations, `MEDALIGN-vis` (without L_att) and
    `MEDALIGN-att` (without L_vis). A rotation without either loss is `W alone`, and losses without
    a rotation are `MEDALIGN without W`.
    """
    if recipe.train.tune == "projector":
        return "projector"
    losses, rotated = recipe.losses, recipe.rotation.kind != "none"
    if not losses.aligned:
        return "W alone" if rotated else LORA
    if losses.alpha and losses.beta:
        name = MEDALIGN
    else:
        name = f"{MEDALIGN}-{'vis' if losses.alpha else 'att'}"
    return name if rotated else f"{name} without W"
