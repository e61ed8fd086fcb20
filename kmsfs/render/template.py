"""Templates: Jinja2 in its sandbox, with functions that read parameters and secrets."""

from pathlib import Path

from jinja2 import FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.sandbox import SandboxedEnvironment

from kmsfs.errors import InvalidRequest
from kmsfs.render.sources import Sources


def render(template: Path, sources: Sources) -> bytes:
    """Return a template's text with its secrets in it; what it includes lies beside it.

    Raises:
        InvalidRequest: if the template is wrong, cannot be read or names what is not there; it never shows a value.
        KmsfsError: as the operations that read.
    """
    # What is rendered are configuration files, not pages: nothing is escaped but by the template's own filters.
    place = SandboxedEnvironment(
        loader=FileSystemLoader(template.parent), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    place.globals.update(
        param=sources.param, tree=sources.tree, secret=sources.secret, secret_json=sources.secret_json
    )
    try:
        return place.get_template(template.name).render().encode()
    except TemplateSyntaxError as error:
        raise InvalidRequest(f"{error.filename or template}, line {error.lineno}: {error.message}") from error
    except TemplateError as error:
        raise InvalidRequest(f"{template}: {error.message or type(error).__name__}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        # What Python says of a wrong operand could quote it.
        raise InvalidRequest(f"{template}: an expression failed with {type(error).__name__}") from None
    except OSError as error:
        raise InvalidRequest(f"cannot read {template}: {error.strerror}") from error
