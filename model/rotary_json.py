"""Rotary positions in `config.json`. Two spellings are read: `rope_theta` with `rope_scaling`, and `rope_parameters`.

`rope_parameters` may hold one set for all layers, or one for each kind of layer. Places that disagree are refused.
"""
from model.families import FULL, WINDOWED, Family
from model.values import check_number, is_int, short

KEYS = {  # rope_type -> the keys that it needs, and those that may be absent or null
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (("factor", "original_max_position_embeddings"),
             ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")),
    "longrope": (("short_factor", "long_factor", "original_max_position_embeddings"), ("factor", "attention_factor"))}
ROPE_TYPES = ("default", *KEYS)
ORIGINAL, LARGEST_ORIGINAL = "original_max_position_embeddings", 1 << 40
LISTS = ("short_factor", "long_factor")
LAYER_KINDS = (WINDOWED, FULL, "chunked_attention", "linear_attention")


def read_rope(raw: dict, family: Family) -> dict:
    """The fields of `LlamaConfig` about rotary positions. Raises ValueError if two places state different values."""
    local = {}
    if family.local_theta is not None:
        raw, local["rope_local_theta"] = _local(raw, family.local_theta)
    places = [(key, _of_all_layers(key, raw[key])) for key in ("rope_parameters", "rope_scaling")
              if raw.get(key) not in (None, {})]
    theta = _agree("rope_theta", _everywhere("rope_theta", raw, places))
    theta = family.theta if theta is None else theta
    check_number("rope_theta", theta, 1, 1e15)
    partial = _agree("partial_rotary_factor", _everywhere("partial_rotary_factor", raw, places))
    if partial is not None:
        check_number("partial_rotary_factor", partial, 0, 1)
    if partial not in (None, 1) and not family.partial_rotary:
        raise ValueError(f"partial_rotary_factor is {short(partial)}, but all dimensions of a head must rotate "
                         f"(1, or no such key) in this family")
    return {"rope_theta": theta, "rope_scaling": _agreed_scaling(raw, places), **local,
            **({} if partial is None else {"partial_rotary_factor": partial})}


def _everywhere(key: str, raw: dict, places: list[tuple[str, dict]]) -> list[tuple[str, object]]:
    return [("the top level", raw.get(key)), *((place, stated.get(key)) for place, stated in places)]


def _agreed_scaling(raw: dict, places: list[tuple[str, dict]]) -> dict | None:
    kinds = [stated.get("rope_type", stated.get("type", "default")) for _, stated in places]
    differ = bool(kinds[1:]) and kinds[0] != kinds[1]
    scalings = [] if differ else [(key, _scaling(key, stated, raw)) for key, stated in places]
    if len(places) == 2 and (not scalings or scalings[0][1] != scalings[1][1]):
        raise ValueError(f"rope_parameters ({short(raw['rope_parameters'], 150)}) and rope_scaling "
                         f"({short(raw['rope_scaling'], 150)}) disagree: keep the one that the model was trained with")
    scaling = scalings[0][1] if scalings else None
    if scaling and ORIGINAL in scaling:
        _agree(ORIGINAL, [("the top level", raw.get(ORIGINAL)), (scalings[0][0], scaling[ORIGINAL])])
    return scaling


def _agree(key: str, stated: list[tuple[str, object]]) -> object:
    """The value that all places state; None if none does. Raises ValueError, with both, if two of them differ."""
    found = [(place, value) for place, value in stated if value is not None]
    for place, value in found[1:]:
        if value != found[0][1]:
            raise ValueError(f"{key} is {short(found[0][1])} at {found[0][0]}, but {short(value)} in {place}: keep "
                             f"the one that the model was trained with")
    return found[0][1] if found else None


def _local(raw: dict, usual: float) -> tuple[dict, float]:
    """For a family whose windowed layers have a rotary base of their own: the configuration of the other layers, and
    that base. It is `rope_local_base_freq`, or in `rope_parameters`: {"sliding_attention": {"rope_theta": ...}}."""
    nested, local = raw.get("rope_parameters"), {}
    if isinstance(nested, dict) and nested:
        if unknown := sorted(set(nested) - {FULL, WINDOWED}):
            raise ValueError(f"rope_parameters holds {short(unknown[0])}, but must hold one set for {FULL} and one for "
                             f"{WINDOWED}, whose rotary positions differ in this family")
        for kind, stated in nested.items():
            if not isinstance(stated, dict | None):
                raise ValueError(f"rope_parameters.{kind} is {short(stated)}, but must be a JSON object")
        local = nested.get(WINDOWED) or {}
        if scaling := _scaling(f"rope_parameters.{WINDOWED}", local, raw):
            raise ValueError(f"rope_parameters.{WINDOWED} is scaled ({scaling['rope_type']}), but only layers without "
                             f"a window may be in this family")
        raw = {**raw, "rope_parameters": nested.get(FULL)}
    theta = _agree("rope_local_base_freq", [("the top level", raw.get("rope_local_base_freq")),
                                            (f"rope_parameters.{WINDOWED}", local.get("rope_theta"))])
    theta = usual if theta is None else theta
    check_number("rope_local_base_freq", theta, 1, 1e15)
    return raw, theta


def _of_all_layers(key: str, stated: object) -> dict:
    """The parameters of every layer. Newer files may nest them by kind of layer: {"full_attention": {...}, ...}.

    Raises ValueError if two kinds of layers differ."""
    if not isinstance(stated, dict):
        raise ValueError(f"{key} is {short(stated)}, but must be a JSON object")
    kinds = [kind for kind in stated if kind in LAYER_KINDS]
    if not kinds:
        if nested := [kind for kind, value in stated.items() if isinstance(value, dict)]:
            raise ValueError(f"{key} holds parameters of {short(nested[0])}, which is no kind of layer that is known "
                             f"here: {', '.join(LAYER_KINDS)}")
        return stated
    if others := sorted(set(stated) - set(kinds)):
        raise ValueError(f"{key} holds parameters of {kinds[0]} layers beside {short(others[0])} for all layers: give "
                         f"one or the other")
    first, *rest = kinds
    for kind in rest:
        if stated[kind] != stated[first]:
            raise ValueError(f"{key} differs between {first} ({short(stated[first])}) and {kind} "
                             f"({short(stated[kind])}); only the same rotary positions in all layers are supported")
    return _of_all_layers(f"{key}.{first}", stated[first])


# ---- scaling ------------------------------------------------------------------------------------------------------

def _scaling(key: str, stated: dict, raw: dict) -> dict | None:
    """The rotary scaling that one place states; None for plain rotary positions. Absent and null keys are left out,
    but for the original length: transformers then takes `max_position_embeddings`."""
    kind = _agree(f"{key}'s type", [("rope_type", stated.get("rope_type")), ("type", stated.get("type"))])
    if kind is None or kind == "default":
        if stated.get("factor") not in (None, 1):
            raise ValueError(f"{key} has factor {short(stated['factor'])}, but "
                             f"{'no rope_type' if kind is None else 'rope_type default, which scales nothing'}: name "
                             f"the rotary scaling; supported: {', '.join(ROPE_TYPES)}")
        return None
    if kind in ("su", "yarn") and stated.get("long_factor"):  # names of longrope in the first Phi-3 files
        kind = "longrope"
    if not isinstance(kind, str) or kind not in KEYS:
        raise ValueError(f"rotary scaling {short(kind)} is not supported; supported: {', '.join(ROPE_TYPES)}")
    needed, optional = KEYS[kind]
    if kind in ("yarn", "longrope") and stated.get(ORIGINAL) is None:
        stated = {**stated, ORIGINAL: raw.get(ORIGINAL) or raw.get("max_position_embeddings")}
    if missing := [name for name in needed if name not in stated]:
        raise ValueError(f"rotary scaling {kind!r} needs {', '.join(missing)}")
    scaling = {"rope_type": kind, **{name: stated[name] for name in needed},
               **{name: stated[name] for name in optional if stated.get(name) is not None}}
    for name, value in scaling.items():
        _check(name, value)
    _check_order(scaling)
    return scaling


def _check(name: str, value: object) -> None:
    """Raises ValueError for a value of a rotary scaling that is of a wrong type or out of range."""
    where = f"{name} of the rotary scaling"
    if name == "rope_type":
        return
    if name == ORIGINAL:
        if not (is_int(value) and 0 < value <= LARGEST_ORIGINAL):
            raise ValueError(f"{where} is {short(value)}, but must be a positive integer")
    elif name == "truncate":
        if not isinstance(value, bool):
            raise ValueError(f"{where} is {short(value)}, but must be true or false")
    elif name in LISTS:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {short(value)}, but must be a list of numbers")
        for i, number in enumerate(value):
            check_number(f"{name}[{i}] of the rotary scaling", number, 0, 1e6)
    else:
        check_number(where, value, 0, 1e6)


def _check_order(scaling: dict) -> None:
    for below, above in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        low, high = scaling.get(below), scaling.get(above, 32 if above == "beta_fast" else None)
        if low is not None and low >= high:
            raise ValueError(f"{below} is {low}, but must be below {above} {high}")


def check_lengths(scaling: dict | None, rotary_dim: int) -> None:
    """Raises ValueError unless longrope's lists hold one number for each pair of dimensions that rotates."""
    for name in LISTS:
        numbers = (scaling or {}).get(name)
        if numbers is not None and len(numbers) != rotary_dim // 2:
            raise ValueError(f"{name} of the rotary scaling holds {len(numbers)} numbers, but {rotary_dim} dimensions "
                             f"of a head rotate, which are {rotary_dim // 2} pairs")
