"""Creating a pod as it was written, and as Pod Security wants it where that is what was refused."""

from __future__ import annotations

from trialkeeper_operator.decide.pods import restricted
from trialkeeper_operator.reconcile.ports import Invalid, Object
from trialkeeper_operator.reconcile.world import World

_POD_SECURITY = "violates PodSecurity"


async def admitted(world: World, experiment: str, body: Object, *, dry_run: bool = False) -> Object:
    """Create a pod of an experiment (uid).

    A namespace that enforces `restricted` refuses most templates for want of five fields; they are added then, and
    only then, since a template that says nothing may rely on the image's user.

    :raises Invalid: if it is refused for another reason, or even so.
    """
    if experiment in world.hardened:
        return await world.cluster.create(restricted(body), dry_run=dry_run)
    try:
        return await world.cluster.create(body, dry_run=dry_run)
    except Invalid as refusal:
        if _POD_SECURITY not in str(refusal):
            raise
    created = await world.cluster.create(restricted(body), dry_run=dry_run)
    world.hardened.add(experiment)
    return created
