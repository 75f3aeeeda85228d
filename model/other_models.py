"""Model types that are not read: in words, for the error. And the text part of those that read images too."""
import re

# A pattern of `model_type` -> what such a model is. The first that matches is said.
KINDS = {
    r"moe|mixtral|gpt_oss|deepseek|llama4|dbrx|arctic|minimax|kimi|ernie4_5": "a mixture of experts",
    r"vl\b|vl_|_vl|vision|llava|omni|mllama|paligemma|multimodal|pixtral|idefics|smolvlm|internvl|mistral3|gemma3n"
    r"|gemma4|4v|blip|fuyu|molmo": "a model of images or of several kinds of input",
    r"audio|whisper|speech|asr|wav": "a model of sound",
    r"mamba|jamba|recurrent|rwkv|hybrid|lfm|falcon_h1|bamba|zamba|nemotron_h|next|qwen3_5":
        "a model with recurrent layers",
    r"bert|t5|bart|electra|pegasus|marian": "no decoder",
}
# Models of images whose text part is a family of its own: its configuration is `text_config`.
TEXT_PARTS = {"gemma3": "gemma3_text"}
# Their tensors: what begins so is left out, and the prefixes of the text part.
NOT_TEXT = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
TEXT_PREFIX = re.compile(r"(model\.language_model\.|language_model\.model\.)|language_model\.(?=lm_head\.)")


def why_not(model_type: object) -> str:
    """`, a mixture of experts`: the end of a message about a model type that is not read."""
    kind = next((words for pattern, words in KINDS.items() if re.search(pattern, str(model_type).lower())), None)
    return f" ({kind})" if kind else ""


def text_part(raw: dict) -> dict:
    """The configuration of the text part of a model of images; any other as it is. Tokens of the whole go first."""
    model_type, text = raw.get("model_type"), raw.get("text_config")
    if not isinstance(model_type, str) or model_type not in TEXT_PARTS:
        return raw
    if not isinstance(text, dict):
        raise ValueError(f"model_type {model_type!r} has no text_config, which must hold the configuration of its text "
                         f"part")
    tokens = {key: raw[key] for key in ("bos_token_id", "eos_token_id") if raw.get(key) is not None}
    return {**text, **tokens, "model_type": TEXT_PARTS[model_type]}


def text_name(name: str) -> str | None:
    """The name of a tensor of a model of images in its text part alone; None for tensors of the rest.

    `language_model.model.norm.weight -> model.norm.weight`"""
    if NOT_TEXT.match(name):
        return None
    return TEXT_PREFIX.sub(lambda found: "model." if found[1] else "", name, count=1)
