"""Virtual MFA devices: made, given to users, and the codes that they show (IAM user guide, "Assign a virtual MFA device")."""

import base64
import io
from dataclasses import replace
from urllib.parse import quote

from kmsd.dispatch.call import Call
from kmsd.iam.pages import as_user, page, user_meant
from kmsd.iam.records import MFA, USER, Entity, MfaDevice
from kmsd.iam.store import IamStore
from kmsd.iam.tagging import with_tags
from kmsfs.aead.nonces import Rng
from kmsfs.aead.onetime import matching_step, step_at
from kmsfs.api.shapes import iam as shapes
from kmsfs.api.shapes import identities
from kmsfs.api.shapes.keys import Empty
from kmsfs.errors import (
    AccessDenied,
    DeleteConflict,
    EntityAlreadyExists,
    IamLimitExceeded,
    InvalidAuthenticationCode,
    NoSuchEntity,
)
from kmsfs.ids import iam_arn

_SEED_BYTES = 40
_PER_USER_MAX = 8
_PER_ACCOUNT_MAX = 5000
_DRIFT_STEPS = 20
"""Ten minutes: by how much a device's clock may be off when it is given to a user or synchronised anew."""
_WINDOW_STEPS = 1
_WRONG_MAX = 10
_PAUSE_SECONDS = 300.0
"""After so many wrong codes one more may be tried every five minutes: a code in a million is not guessed that way."""


class MfaCodes:
    """Judges codes. Wrong ones are counted for each device, in memory."""

    def __init__(self, store: IamStore) -> None:
        self._store = store
        self._wrong: dict[str, tuple[int, float]] = {}

    def shown(self, call: Call) -> bool:
        """Whether a request of STS shows a code of the caller's own device; one without any shows none.

        Raises:
            AccessDenied: if it is wrong, was used already, or the device is not the caller's.
        """
        serial, code = call.request.serial_number, call.request.token_code
        if serial is None and code is None:
            return False
        if serial is None or code is None:
            raise AccessDenied(
                "MultiFactorAuthentication failed, must provide both MFA serial number and one time pass code."
            )
        user = self._store.of_arn(call.caller.principal)
        device = self._store.mfa_devices.get(serial)
        if user is None or user.kind != USER or device is None or device.user != user.name or device.account != user.account:
            raise AccessDenied(
                "MultiFactorAuthentication failed, unable to validate MFA code.  Please verify your MFA serial number is "
                "valid and associated with this user."
            )
        self._require_pause(device, call.now)
        around = step_at(call.now) + device.drift
        steps = range(max(around - _WINDOW_STEPS, device.last_step + 1), around + _WINDOW_STEPS + 1)
        step = matching_step(device.seed, code, steps)
        if step is None:
            self._count_wrong(device, call.now)
            raise AccessDenied("MultiFactorAuthentication failed with invalid MFA one time pass code. ")
        self._wrong.pop(device.arn, None)
        self._store.put_device(replace(device, last_step=step, drift=step - step_at(call.now)))
        return True

    def synchronised(self, device: MfaDevice, codes: tuple[str, str], now: float) -> MfaDevice:
        """Return a device that knows its clock, by two codes shown one after the other.

        Raises:
            InvalidAuthenticationCode: if they are not that.
        """
        self._require_pause(device, now)
        here = step_at(now)
        first = max(here - _DRIFT_STEPS, device.last_step + 1)
        found = matching_step(device.seed, codes[0], range(first, here + _DRIFT_STEPS + 1))
        if found is None or matching_step(device.seed, codes[1], range(found + 1, found + 2)) is None:
            self._count_wrong(device, now)
            raise InvalidAuthenticationCode(f"Authentication code for device {device.arn} is not valid.")
        self._wrong.pop(device.arn, None)
        return replace(device, last_step=found + 1, drift=found + 1 - here)

    def _require_pause(self, device: MfaDevice, now: float) -> None:
        count, last = self._wrong.get(device.arn, (0, 0.0))
        if count >= _WRONG_MAX and now < last + _PAUSE_SECONDS:
            raise AccessDenied(
                "MultiFactorAuthentication failed: too many wrong codes.", hint="wait five minutes and try again"
            )

    def _count_wrong(self, device: MfaDevice, now: float) -> None:
        self._wrong[device.arn] = (self._wrong.get(device.arn, (0, 0.0))[0] + 1, now)


class MfaService:
    """CreateVirtualMFADevice to ListVirtualMFADevices."""

    def __init__(self, store: IamStore, codes: MfaCodes, rng: Rng) -> None:
        self._store = store
        self._codes = codes
        self._rng = rng

    def create_virtual_mfa_device(self, call: Call) -> shapes.VirtualMfaDeviceResponse:
        """CreateVirtualMFADevice: the seed is shown this once, for an authenticator to keep."""
        request: shapes.CreateVirtualMfaDeviceRequest = call.request
        account = call.caller.account
        arn = iam_arn(account, MFA, request.path, request.virtual_mfa_device_name)
        if arn in self._store.mfa_devices:
            raise EntityAlreadyExists("MFADevice entity at the same path and name already exists.")
        if sum(each.account == account for each in self._store.mfa_devices.values()) >= _PER_ACCOUNT_MAX:
            raise IamLimitExceeded(f"Cannot exceed quota for VirtualMFADevicesPerAccount: {_PER_ACCOUNT_MAX}")
        tags = with_tags({}, request.tags)
        device = MfaDevice(arn, account, request.virtual_mfa_device_name, self._rng(_SEED_BYTES), tags=tags)
        self._store.put_device(device)
        shown = _as_shape(device, None)
        shown.base32_string_seed = base64.b32encode(device.seed)
        shown.qr_code_png = _picture(device)
        return shapes.VirtualMfaDeviceResponse(virtual_mfa_device=shown)

    def enable_mfa_device(self, call: Call) -> Empty:
        """EnableMFADevice."""
        user, device = self._named(call)
        if device.user is not None:
            raise EntityAlreadyExists("MFA Device is already in use.")
        if len(self._store.devices_of(user.account, user.name)) >= _PER_USER_MAX:
            raise IamLimitExceeded(f"Cannot exceed quota for MFADevicesPerUser: {_PER_USER_MAX}")
        known = self._codes.synchronised(device, _codes(call), call.now)
        self._store.put_device(replace(known, user=user.name, enabled=call.now))
        return Empty()

    def resync_mfa_device(self, call: Call) -> Empty:
        """ResyncMFADevice."""
        user, device = self._named(call)
        self._require_whose(device, user)
        self._store.put_device(self._codes.synchronised(device, _codes(call), call.now))
        return Empty()

    def deactivate_mfa_device(self, call: Call) -> Empty:
        """DeactivateMFADevice: sessions that were opened with it go on to their end."""
        user, device = self._named(call)
        self._require_whose(device, user)
        self._store.put_device(replace(device, user=None, enabled=0.0))
        return Empty()

    def delete_virtual_mfa_device(self, call: Call) -> Empty:
        """DeleteVirtualMFADevice."""
        device = self._device(call)
        if device.user is not None:
            raise DeleteConflict("MFA VirtualDevice in use. Must deactivate first.")
        self._store.remove_device(device)
        return Empty()

    def list_mfa_devices(self, call: Call) -> shapes.ListMfaDevicesResponse:
        """ListMFADevices."""
        user = user_meant(self._store, call)
        devices, more = page(
            self._store.devices_of(user.account, user.name), lambda device: device.arn, call.request
        )
        found = [
            shapes.MfaDevice(user_name=user.name, serial_number=device.arn, enable_date=device.enabled) for device in devices
        ]
        return shapes.ListMfaDevicesResponse(mfa_devices=found, **more)

    def list_virtual_mfa_devices(self, call: Call) -> shapes.ListVirtualMfaDevicesResponse:
        """ListVirtualMFADevices: without seeds."""
        wanted: str = call.request.assignment_status
        account = call.caller.account
        chosen = [
            device
            for device in self._store.mfa_devices.values()
            if device.account == account and (wanted == "Any" or (wanted == "Assigned") == (device.user is not None))
        ]
        devices, more = page(chosen, lambda device: device.arn, call.request)
        found = [
            _as_shape(device, self._store.get(account, USER, device.user) if device.user is not None else None)
            for device in devices
        ]
        return shapes.ListVirtualMfaDevicesResponse(virtual_mfa_devices=found, **more)

    def get_mfa_device(self, call: Call) -> identities.GetMfaDeviceResponse:
        """GetMFADevice."""
        device = self._device(call)
        if call.request.user_name is not None:
            self._require_whose(device, user_meant(self._store, call))
        return identities.GetMfaDeviceResponse(
            user_name=device.user, serial_number=device.arn, enable_date=device.enabled or None
        )

    def _named(self, call: Call) -> tuple[Entity, MfaDevice]:
        return user_meant(self._store, call), self._device(call)

    def _device(self, call: Call) -> MfaDevice:
        device = self._store.mfa_devices.get(call.request.serial_number)
        if device is None or device.account != call.caller.account:
            raise NoSuchEntity(f"VirtualMFADevice with serial number {call.request.serial_number} doesn't exist.")
        return device

    def _require_whose(self, device: MfaDevice, user: Entity) -> None:
        if device.user != user.name:
            raise NoSuchEntity(f"The user {user.name} has no MFA device with serial number {device.arn}.")


def _codes(call: Call) -> tuple[str, str]:
    return call.request.authentication_code1, call.request.authentication_code2


def _picture(device: MfaDevice) -> bytes:
    """Return a QR code, as PNG, of what an authenticator wants to know (Key URI format, github.com/google/google-authenticator/wiki)."""
    import segno

    label = quote(f"kmsfs:{device.name}@{device.account}", safe="")
    seed = base64.b32encode(device.seed).decode().rstrip("=")
    drawn = io.BytesIO()
    segno.make(f"otpauth://totp/{label}?secret={seed}&issuer=kmsfs", micro=False).save(drawn, kind="png", scale=4)
    return drawn.getvalue()


def _as_shape(device: MfaDevice, user: Entity | None) -> shapes.VirtualMfaDevice:
    return shapes.VirtualMfaDevice(
        serial_number=device.arn,
        user=as_user(user) if user is not None else None,
        enable_date=device.enabled or None,
        tags=[shapes.Tag(key=key, value=value) for key, value in device.tags.items()] or None,
    )
