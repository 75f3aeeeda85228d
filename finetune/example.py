"""`train.py --show-example`: what the model will read and learn to write, before it is trained for hours on it."""
from finetune.data import Job
from model.tokenizer import continuation


def show_example(job: Job) -> None:
    """Prints the template's version, the first training row as its tokens read, and the first test prompt, with their token counts."""
    first, tokenizer = job.train[0], job.tokenizer
    prompt, answer = first.tokens[:first.prompt_length], first.tokens[first.prompt_length:]
    print(f"--- {job.task.name}, template version {job.task.template_version}: the first of {len(job.train)} training rows, {len(first.tokens)} tokens; "
          f"its prompt, {len(prompt)} tokens\n{tokenizer.decode(prompt)}")
    print(f"--- what is learned after it, {len(answer)} tokens with the end token\n{continuation(tokenizer, prompt, answer[:-1])}")
    if job.test and hasattr(job.test[0], "prompt"):
        text = job.test[0].prompt
        print(f"--- the first of {len(job.test)} test prompts, {len(tokenizer.encode(text))} tokens; at most {job.max_new_tokens} are written\n{text}")
