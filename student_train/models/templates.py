"""How model families write a conversation as text."""

from typing import NamedTuple

from shared.errors import UserError, did_you_mean
from student_train.imagetext import Tokenizer

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_SMOLLM_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
_QWEN_SYSTEM = "You are a helpful assistant."


class Template(NamedTuple):
    """How one model family writes a conversation as text.

    A conversation reads `start`, then for every question `human` (with the text for `{}`) and
    `opening`, then the answer as `gap` + answer + `end`; `between` separates it from the next
    question. What is learned is `gap` + answer + `end`; a generation prompt stops after `opening`.
    An image in front of a question is written as `image`; a question without one may have another
    form, `plain`. `system` is the system message in `start`, empty where there is none. A
    conversation that brings its own has it for `{}` of `told`: that is then its `start`, or, where
    `told_inside`, it stands as `ahead` in front of the first question's images and text.
    """

    name: str
    start: str
    human: str
    opening: str
    gap: str
    end: str
    between: str = ""
    image: str = "<image>\n"
    plain: str | None = None
    system: str = ""
    told: str = ""
    told_inside: bool = False
    ahead: str = ""

    def telling(self, system: str) -> "Template":
        """Return the template with a system message in the place that it has for one.

        Raises
        ------
        UserError
            It has none: no text of this template says where a system message would stand.
        """
        if not self.told:
            others = ", ".join(one.name for one in TEMPLATES.values() if one.told)
            raise UserError(
                f"template {self.name} has no place for a system message ({system[:40]!r}); put "
                f"its words in front of the first question, or train under one that has: {others}"
            )
        written = self.told.replace("{}", system, 1)
        if self.told_inside:
            return self._replace(system=system, ahead=written)
        return self._replace(system=system, start=written)

    @property
    def end_token(self) -> str:
        """The one token that ends an answer."""
        return self.end.strip()


TEMPLATES = {
    template.name: template
    for template in (
        # LLaVA's v1 conversation, with which the authors train and test LLaVA-Med-1.5.
        Template(
            "vicuna_v1",
            f"{_VICUNA_SYSTEM} ",
            "USER: {} ",
            "ASSISTANT:",
            " ",
            "</s>",
            " ",
            system=_VICUNA_SYSTEM,
            told="{} ",
        ),
        # The authors' template for HuatuoGPT-Vision: the same system sentence, the model's own role
        # marks.
        Template(
            "huatuo_v1",
            f"{_VICUNA_SYSTEM} ",
            "<|user|>: {} ",
            "<|assistant|>:",
            " ",
            "<|endoftext|>",
            " ",
            system=_VICUNA_SYSTEM,
            told="{} ",
        ),
        # LLaVA-Med-1.5's own evaluation, which writes a system message as Llama 2 does.
        Template(
            "mistral_instruct",
            "",
            "[INST] {} [/INST]",
            "",
            " ",
            " </s>",
            told="<<SYS>>\n{}\n<</SYS>>\n\n",
            told_inside=True,
        ),
        # HuatuoGPT-Vision's own command line, which has no place for a system message.
        Template("huatuo", "", "<|user|>\n{}\n", "<|assistant|>\n", "", "<|endoftext|>", "\n"),
        # SmolLM2-Instruct's chat template.
        Template(
            "chatml",
            f"<|im_start|>system\n{_SMOLLM_SYSTEM}<|im_end|>\n",
            "<|im_start|>user\n{}<|im_end|>\n",
            "<|im_start|>assistant\n",
            "",
            "<|im_end|>",
            "\n",
            system=_SMOLLM_SYSTEM,
            told="<|im_start|>system\n{}<|im_end|>\n",
        ),
        # SmolVLM's chat template, with the one square that is shown whole (no tiles).
        Template(
            "smolvlm",
            "<|im_start|>",
            "User:{}<end_of_utterance>\n",
            "Assistant:",
            " ",
            "<end_of_utterance>",
            "\n",
            "<fake_token_around_image><global-img><image><fake_token_around_image>",
            "User: {}<end_of_utterance>\n",
            told="<|im_start|>System: {}<end_of_utterance>\n",
        ),
        # Gemma 3's chat template; its tokenizer puts <bos> in front. A system message is a
        # paragraph of the first question.
        Template(
            "gemma3",
            "",
            "<start_of_turn>user\n{}<end_of_turn>\n",
            "<start_of_turn>model\n",
            "",
            "<end_of_turn>",
            "\n",
            "\n\n<start_of_image><image><end_of_image>\n\n",
            told="{}\n\n",
            told_inside=True,
        ),
        # InternVL's chat template in transformers' format, which has no system turn of its own.
        Template(
            "internvl",
            "",
            "<|im_start|>user\n{}<|im_end|>\n",
            "<|im_start|>assistant\n",
            "",
            "<|im_end|>",
            "\n",
            "<img><image></img>\n",
            told="<|im_start|>system\n{}<|im_end|>\n",
        ),
        # Qwen2.5-VL's chat template.
        Template(
            "qwen2_5_vl",
            f"<|im_start|>system\n{_QWEN_SYSTEM}<|im_end|>\n",
            "<|im_start|>user\n{}<|im_end|>\n",
            "<|im_start|>assistant\n",
            "",
            "<|im_end|>",
            "\n",
            "<|vision_start|><image><|vision_end|>",
            system=_QWEN_SYSTEM,
            told="<|im_start|>system\n{}<|im_end|>\n",
        ),
        # Qwen3-VL-Instruct's chat template, which has no system turn of its own.
        Template(
            "qwen3_vl",
            "",
            "<|im_start|>user\n{}<|im_end|>\n",
            "<|im_start|>assistant\n",
            "",
            "<|im_end|>",
            "\n",
            "<|vision_start|><image><|vision_end|>",
            told="<|im_start|>system\n{}<|im_end|>\n",
        ),
    )
}


def template_named(name: str) -> Template:
    """Return a template by name, or raise a `UserError` with the nearest name."""
    if name not in TEMPLATES:
        hint = did_you_mean(name, TEMPLATES, f"there are {', '.join(TEMPLATES)}")
        raise UserError(f"no prompt template is named {name!r}; {hint}")
    return TEMPLATES[name]


def check_tokenizer(tokenizer: Tokenizer, template: Template) -> None:
    """Raise a `UserError` where the template's end of an answer is no single token."""
    ids = tokenizer(template.end_token, add_special_tokens=False).input_ids
    if len(ids) != 1 or ids[0] == getattr(tokenizer, "unk_token_id", None):
        raise UserError(
            f"the tokenizer has no token {template.end_token}, with which template {template.name} "
            "ends an answer; "
            f"set model.template to the one this model was trained with ({', '.join(TEMPLATES)})"
        )
