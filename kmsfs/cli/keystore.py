"""kmsfs keystore: custom key stores, PKCS #11 tokens that keep KMS keys."""

from typing import Annotated, Any

import typer

from kmsfs.cli.output import call, confirm, pages, read_text_value, say, show, table, when
from kmsfs.errors import CustomKeyStoreInvalidState, CustomKeyStoreNotFound

app = typer.Typer(no_args_is_help=True, help="Custom key stores: PKCS #11 tokens that keep KMS keys.")
Store = Annotated[str, typer.Argument(metavar="STORE", help="Its id or its name.")]
PinFile = Annotated[str, typer.Option("--pin-file", help="File with the token's PIN, `-` for standard input.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call it.")],
    token: Annotated[str, typer.Option(help="The token, as `kmsd serve --key-store-token NAME=…` calls it.")],
    pin_file: PinFile,
) -> None:
    """Make a custom key store, and connect it. Example: kmsfs keystore create hsm --token hsm1 --pin-file PIN"""
    made = call(
        "CreateCustomKeyStore", CustomKeyStoreName=name, CloudHsmClusterId=token, KeyStorePassword=read_text_value(pin_file).strip()
    )
    _connect(made["CustomKeyStoreId"], name)
    show(made, lambda: print(made["CustomKeyStoreId"]))


@app.command("list")
def list_stores() -> None:
    """List custom key stores, and whether they are connected."""
    found = _all()
    rows = [
        (each["CustomKeyStoreId"], each["CustomKeyStoreName"], each["CloudHsmClusterId"],
         " ".join(filter(None, (each["ConnectionState"].lower(), each.get("ConnectionErrorCode")))), when(each["CreationDate"]))
        for each in found
    ]  # fmt: skip
    show(found, lambda: table(("id", "name", "token", "state", "since"), rows))


@app.command()
def connect(store: Store) -> None:
    """Log in to a store's token."""
    found = find_store(store)
    _connect(found["CustomKeyStoreId"], found["CustomKeyStoreName"])
    show({}, lambda: say(f"{found['CustomKeyStoreName']} is connected"))


@app.command()
def disconnect(store: Store, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Log out of a store's token: its keys cannot be used until it is connected again."""
    found = find_store(store)
    confirm(f"What is under the keys of {found['CustomKeyStoreName']} cannot be read until it is connected again", store, yes=yes)
    call("DisconnectCustomKeyStore", CustomKeyStoreId=found["CustomKeyStoreId"])
    show({}, lambda: say(f"{found['CustomKeyStoreName']} is disconnected"))


@app.command()
def update(
    store: Store,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    token: Annotated[str | None, typer.Option(help="The token to which its keys went.")] = None,
    pin_file: Annotated[str | None, typer.Option("--pin-file", help="File with the token's new PIN, `-` for standard input.")] = None,
) -> None:
    """Change a store that is not connected."""
    call(
        "UpdateCustomKeyStore", CustomKeyStoreId=find_store(store)["CustomKeyStoreId"], NewCustomKeyStoreName=name,
        CloudHsmClusterId=token, KeyStorePassword=read_text_value(pin_file).strip() if pin_file else None,
    )  # fmt: skip
    show({}, lambda: say(f"changed {store}"))


@app.command()
def delete(store: Store, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Forget a store that has no KMS keys and is not connected. The token stays as it is."""
    found = find_store(store)
    confirm(f"The key store {found['CustomKeyStoreName']} is forgotten, with the PIN of its token", store, yes=yes)
    call("DeleteCustomKeyStore", CustomKeyStoreId=found["CustomKeyStoreId"])
    show({}, lambda: say(f"forgot {found['CustomKeyStoreName']}"))


def find_store(text: str) -> dict[str, Any]:
    """Return the custom key store of an id or a name.

    Raises:
        CustomKeyStoreNotFound: if there is none.
    """
    for each in _all():
        if text in (each["CustomKeyStoreId"], each["CustomKeyStoreName"]):
            return each
    raise CustomKeyStoreNotFound(f"there is no custom key store {text}", hint="kmsfs keystore list")


def _connect(store_id: str, name: str) -> None:
    call("ConnectCustomKeyStore", CustomKeyStoreId=store_id)
    [state] = call("DescribeCustomKeyStores", CustomKeyStoreId=store_id)["CustomKeyStores"]
    if state["ConnectionState"] != "CONNECTED":
        raise CustomKeyStoreInvalidState(
            f"{name} is there, but could not be connected: {state.get('ConnectionErrorCode')}",
            hint="the daemon's log has the details; kmsfs keystore update and connect mend it",
        )


def _all() -> list[dict[str, Any]]:
    return pages("DescribeCustomKeyStores", "CustomKeyStores", "Marker", "NextMarker")
