"""kmsfs key: KMS keys and their policies."""

import base64
import binascii
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from kmsfs.cli.keystore import find_store
from kmsfs.cli.output import (
    SETTINGS,
    call,
    confirm,
    facts,
    pages,
    read_text_value,
    read_value,
    say,
    show,
    table,
    when,
)
from kmsfs.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="KMS keys: they never leave the daemon.")
policy_app = typer.Typer(no_args_is_help=True, help="A key's policy: who may do what with it.")
app.add_typer(policy_app, name="policy")

Key = Annotated[str, typer.Argument(metavar="KEY", help="Key id, ARN, or alias/NAME.")]


def _print_metadata(metadata: dict[str, Any]) -> None:
    facts(
        [
            ("key id", metadata["KeyId"]),
            ("arn", metadata["Arn"]),
            ("state", metadata["KeyState"]),
            ("spec", metadata["KeySpec"]),
            ("usage", metadata["KeyUsage"]),
            ("key store", metadata.get("CustomKeyStoreId")),
            ("description", metadata["Description"] or None),
            ("created", when(metadata["CreationDate"])),
            ("deleted on", when(metadata.get("DeletionDate"))),
            ("material", metadata.get("CurrentKeyMaterialId")),
        ]
    )


@app.command()
def create(
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    alias: Annotated[str | None, typer.Option(help="Name it: alias/NAME.")] = None,
    policy_file: Annotated[
        str | None, typer.Option(help="File with a key policy, `-` for standard input.")
    ] = None,
    spec: Annotated[
        str | None, typer.Option(help="Kind of key, such as RSA_2048, ECC_NIST_P256, HMAC_256, ML_DSA_65.")
    ] = None,
    usage: Annotated[
        str | None, typer.Option(help="ENCRYPT_DECRYPT, SIGN_VERIFY, GENERATE_VERIFY_MAC, KEY_AGREEMENT …")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")] = None,
    store: Annotated[str | None, typer.Option(help="Keep it in this custom key store: id or name.")] = None,
) -> None:
    """Create a KMS key. Example: kmsfs key create --alias alias/projects"""
    policy = read_text_value(policy_file) if policy_file else None
    metadata = call(
        "CreateKey",
        Description=description,
        Policy=policy,
        KeySpec=spec,
        KeyUsage=usage,
        Tags=_tags(tag or []),
        **({"Origin": "AWS_CLOUDHSM", "CustomKeyStoreId": find_store(store)["CustomKeyStoreId"]} if store else {}),
    )["KeyMetadata"]
    if alias:
        call("CreateAlias", AliasName=alias, TargetKeyId=metadata["KeyId"])
    show(metadata, lambda: print(metadata["KeyId"]))


@app.command()
def describe(key: Key) -> None:
    """Tell a key's state and dates."""
    metadata = call("DescribeKey", KeyId=key)["KeyMetadata"]
    show(metadata, lambda: _print_metadata(metadata))


@app.command("list")
def list_keys() -> None:
    """List the keys that you may describe."""
    names: dict[str, list[str]] = {}
    for entry in pages("ListAliases", "Aliases", "Marker", "NextMarker"):
        names.setdefault(entry["TargetKeyId"], []).append(entry["AliasName"])
    found = []
    for entry in pages("ListKeys", "Keys", "Marker", "NextMarker"):
        metadata = call("DescribeKey", KeyId=entry["KeyId"])["KeyMetadata"]
        found.append({**metadata, "Aliases": names.get(entry["KeyId"], [])})
    rows = [(k["KeyId"], k["KeyState"], ", ".join(k["Aliases"]), k["Description"]) for k in found]
    show(found, lambda: table(("key id", "state", "aliases", "description"), rows))


def _tags(texts: list[str]) -> list[dict[str, str]]:
    pairs = [text.partition("=") for text in texts]
    return [{"TagKey": name, "TagValue": value} for name, _, value in pairs]


@app.command("tag")
def tag_key(key: Key, tags: Annotated[list[str], typer.Argument(help="NAME=VALUE …")]) -> None:
    """Add tags to a key, or change them. Example: kmsfs key tag alias/a team=red"""
    call("TagResource", KeyId=key, Tags=_tags(tags))
    show({}, lambda: say(f"tagged {key}"))


@app.command()
def untag(key: Key, names: Annotated[list[str], typer.Argument(help="NAME …")]) -> None:
    """Take tags from a key."""
    call("UntagResource", KeyId=key, TagKeys=names)
    show({}, lambda: say(f"untagged {key}"))


@app.command()
def tags(key: Key) -> None:
    """List a key's tags."""
    found = pages("ListResourceTags", "Tags", "Marker", "NextMarker", KeyId=key)
    show(found, lambda: table(("tag", "value"), [(tag["TagKey"], tag["TagValue"]) for tag in found]))


@app.command()
def sign(
    key: Key,
    algorithm: Annotated[str, typer.Argument(help="Such as ECDSA_SHA_256.")],
    message: Annotated[str, typer.Option(help="File with the message, `-` for standard input.")] = "-",
) -> None:
    """Sign up to 4,096 bytes; prints the signature as base64. Example: kmsfs key sign alias/s ECDSA_SHA_256 <file"""
    answer = call("Sign", KeyId=key, Message=read_value(message), SigningAlgorithm=algorithm)
    show(answer, lambda: print(base64.b64encode(answer["Signature"]).decode()))


@app.command()
def verify(
    key: Key,
    algorithm: Annotated[str, typer.Argument(help="Such as ECDSA_SHA_256.")],
    signature: Annotated[Path, typer.Argument(help="File with the signature as base64.")],
    message: Annotated[str, typer.Option(help="File with the message, `-` for standard input.")] = "-",
) -> None:
    """Check a signature; the exit code is 20 if it does not fit."""
    try:
        raw = base64.b64decode(signature.read_bytes().strip(), validate=True)
    except (OSError, binascii.Error) as error:
        raise UsageError(f"{signature} holds no base64 signature") from error
    answer = call("Verify", KeyId=key, Message=read_value(message), Signature=raw, SigningAlgorithm=algorithm)
    show(answer, lambda: say("the signature fits"))


@app.command("public-key")
def public_key(key: Key) -> None:
    """Print a key pair's public key as PEM."""
    answer = call("GetPublicKey", KeyId=key)
    text = base64.encodebytes(answer["PublicKey"]).decode().replace("\n", "")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    show(answer, lambda: print("\n".join(["-----BEGIN PUBLIC KEY-----", *lines, "-----END PUBLIC KEY-----"])))


@app.command("auto-rotate")
def auto_rotate(
    key: Key,
    days: Annotated[int, typer.Option(help="How long material stays current: 90 to 2,560 days.")] = 365,
    *,
    off: Annotated[bool, typer.Option("--off", help="Stop rotating by itself.")] = False,
) -> None:
    """Give a key new material by itself, every so many days."""
    if off:
        call("DisableKeyRotation", KeyId=key)
        show({}, lambda: say(f"{key} keeps its present material"))
        return
    call("EnableKeyRotation", KeyId=key, RotationPeriodInDays=days)
    status = call("GetKeyRotationStatus", KeyId=key)
    show(status, lambda: say(f"{key} rotates next on {when(status['NextRotationDate'])}"))


@app.command()
def rotate(key: Key) -> None:
    """Give a key new material now; what the old material encrypted stays readable."""
    answer = call("RotateKeyOnDemand", KeyId=key)
    show(answer, lambda: say(f"rotated {answer['KeyId']}"))


@app.command()
def enable(key: Key) -> None:
    """Let a disabled key be used again."""
    call("EnableKey", KeyId=key)
    show({}, lambda: say(f"enabled {key}"))


@app.command()
def disable(key: Key) -> None:
    """Stop every use of a key at once, in mounts too."""
    call("DisableKey", KeyId=key)
    show({}, lambda: say(f"disabled {key}; mounts under it answer errors until `kmsfs key enable {key}`"))


@app.command("describe-as")
def set_description(
    key: Key, description: Annotated[str, typer.Argument(help="The new description.")]
) -> None:
    """Change a key's description."""
    call("UpdateKeyDescription", KeyId=key, Description=description)
    show({}, lambda: say(f"described {key}"))


@app.command()
def dependents(key: Key) -> None:
    """Tell what cannot be read without a key, and when it was last used."""
    found = call("ListKeyDependents", KeyId=key)
    show(found, lambda: _print_dependents(found))


def _print_dependents(found: dict[str, Any]) -> None:
    last = found.get("KeyLastUsage")
    facts(
        [
            ("volumes", " ".join(found["Volumes"]) or "none"),
            ("parameters", found["Parameters"]),
            ("secrets", found["Secrets"]),
            ("grants", found["Grants"]),
            ("aliases", " ".join(found["Aliases"]) or "none"),
            ("last used", f"{when(last['Timestamp'])} for {last['Operation']}" if last else "not since uses are noted"),
        ]
    )


@app.command("schedule-deletion")
def schedule_deletion(
    key: Key,
    days: Annotated[int, typer.Option(help="Waiting period, 7 to 30 days.")] = 30,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a key after a waiting period. What it encrypted is lost then."""
    found = call("ListKeyDependents", KeyId=key)
    if not (yes or SETTINGS.as_json):
        _print_dependents(found)
    confirm(f"Everything under {found['KeyId']} becomes unreadable now and lost in {days} days", key, yes=yes)
    answer = call("ScheduleKeyDeletion", KeyId=key, PendingWindowInDays=days)
    show(
        answer,
        lambda: say(
            f"will be deleted on {when(answer['DeletionDate'])}; `kmsfs key cancel-deletion` keeps it"
        ),
    )


@app.command("cancel-deletion")
def cancel_deletion(key: Key) -> None:
    """Keep a key that was to be deleted; it is disabled afterwards."""
    answer = call("CancelKeyDeletion", KeyId=key)
    show(answer, lambda: say(f"kept, and disabled: `kmsfs key enable {key}` lets it be used"))


@policy_app.command("get")
def policy_get(key: Key) -> None:
    """Print a key's policy."""
    answer = call("GetKeyPolicy", KeyId=key)
    show(answer, lambda: print(answer["Policy"]))


@policy_app.command("put")
def policy_put(
    key: Key,
    policy_file: Annotated[str, typer.Argument(help="File with the policy, `-` for standard input.")],
    bypass: Annotated[
        bool,
        typer.Option("--bypass-policy-lockout-safety-check", help="Even if you could not change it again."),
    ] = False,
) -> None:
    """Replace a key's policy. It takes effect at once, in mounts too."""
    text = read_text_value(policy_file)
    call("PutKeyPolicy", KeyId=key, Policy=text, BypassPolicyLockoutSafetyCheck=bypass)
    show({}, lambda: say(f"policy of {key} replaced"))


@app.command()
def encrypt(
    key: Key,
    source: Annotated[
        str, typer.Argument(help="File with at most 4,096 bytes, `-` for standard input.")
    ] = "-",
    context: Annotated[
        list[str] | None, typer.Option("--context", help="NAME=VALUE of the encryption context.")
    ] = None,
) -> None:
    """Encrypt up to 4,096 bytes; the ciphertext blob goes to stdout."""
    answer = call(
        "Encrypt", KeyId=key, Plaintext=read_value(source), EncryptionContext=parse_context(context)
    )
    show(answer, lambda: _write_bytes(answer["CiphertextBlob"]))


@app.command()
def decrypt(
    source: Annotated[str, typer.Argument(help="File with a ciphertext blob, `-` for standard input.")] = "-",
    context: Annotated[
        list[str] | None, typer.Option("--context", help="NAME=VALUE of the encryption context.")
    ] = None,
) -> None:
    """Decrypt a ciphertext blob; the plaintext goes to stdout."""
    answer = call("Decrypt", CiphertextBlob=read_value(source), EncryptionContext=parse_context(context))
    show(answer, lambda: _write_bytes(answer["Plaintext"]))


def parse_context(items: list[str] | None) -> dict[str, str]:
    """Return the encryption context of NAME=VALUE options.

    Raises:
        UsageError: if an item has no `=`.
    """
    from kmsfs.errors import UsageError

    context = {}
    for item in items or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"{item!r} is not NAME=VALUE")
        context[name] = value
    return context


def _write_bytes(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


@app.command()
def materials(key: Key) -> None:
    """List the versions of a key's material, as rotations made them."""
    found = pages(
        "ListKeyRotations",
        "Rotations",
        "Marker",
        "NextMarker",
        KeyId=key,
        IncludeKeyMaterial="ALL_KEY_MATERIAL",
    )
    rows = [
        (m["KeyMaterialId"], m.get("KeyMaterialState"), m.get("RotationType"), when(m.get("RotationDate")))
        for m in found
    ]
    show(found, lambda: table(("material id", "state", "rotation", "since"), rows))


@app.command("destroy-material")
def destroy_material(
    key: Key,
    material_id: Annotated[
        str, typer.Argument(help="Id of material that a rotation replaced: `kmsfs key materials`.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Destroy old material after `kmsfs rewrap` has shown that nothing lies under it. What does is lost for ever."""
    confirm("What is still encrypted under this material will be lost for ever", material_id, yes=yes)
    answer = call("DestroyKeyMaterial", KeyId=key, KeyMaterialId=material_id)
    show(answer, lambda: say(f"version {answer['MaterialVersion']} of {answer['KeyId']} is gone"))
