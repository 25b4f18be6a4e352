"""Whether a judge behind endpoints knows the key and serves the model: asked before a run trains anything, at no cost.

A model is retired, a key expires, a name is misspelt: the judge's own first request would say so hours later, after the
checkpoints were paid for.
"""

from collections.abc import Mapping
from typing import Any

from core.errors import JudgeError
from evals.judges.openai_judge import addresses_of
from evals.judges.prices import OPENAI_URL

TIMEOUT = 20.0


def require_served(settings: Mapping[str, Any], section: str) -> list[str]:
    """Ask every endpoint of an `OpenAIJudge`'s settings for the model. Returns what could not be found out, as sentences.

    An endpoint that has no list of models, or cannot be reached now, is no error: the judge may be wanted hours later, or
    not at all where everything is judged. Raises JudgeError for a refused key and for a model that is not there; `section`
    (`evaluate.judge`, `annotate.judge`) is what its fix names.
    """
    import openai

    unknown = []
    for address in addresses_of(settings["model"], settings):
        name, url = settings["model"], address.base_url
        with openai.OpenAI(api_key=address.key, base_url=url, timeout=TIMEOUT, max_retries=1) as client:
            try:
                if url == OPENAI_URL:
                    client.models.retrieve(name)
                    continue
                served = list(client.models.list())
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise JudgeError(f"The judge's endpoint {url} refuses the key ({error.status_code}); correct it.") from error
            except openai.APIConnectionError:
                unknown.append(f"The judge {name} will be needed, and {url} cannot be reached now.")
                continue
            except openai.NotFoundError as error:
                if url == OPENAI_URL:
                    raise JudgeError(_absent(name, url, section)) from error
                continue
            except (openai.APIError, ValueError, TypeError, AttributeError):
                continue  # an endpoint with a list of its own kind, or with none
        # Gateways route to models that they do not list; vLLM's list is all that it serves.
        if served and all(model.owned_by == "vllm" for model in served) and name not in {model.id for model in served}:
            known = ", ".join(sorted(model.id for model in served))
            raise JudgeError(f"{_absent(name, url, section)} It serves {known}.")
    return unknown


def _absent(name: str, url: str, section: str) -> str:
    return (
        f"The judge {name} is not served at {url}: it is retired, misspelt, or not open to this key. Name another with "
        f"--set {section}.model=MODEL (`harness eval`: --judge openai:MODEL); rows of different judges never rank together."
    )
