"""Handlers of the batch operations: each item is authorised, done and audited on its own."""

from kmsd.dispatch.authorise import Authoriser
from kmsd.dispatch.call import Call
from kmsd.dispatch.pipeline import Pipeline
from kmsd.keys.crypto import CryptoService, open_blob
from kmsd.keys.lifecycle import check_state
from kmsfs.api.shapes import crypto as shapes
from kmsfs.errors import KmsfsError


class BatchService:
    """GenerateDataKeyBatch and DecryptBatch."""

    def __init__(self, pipeline: Pipeline, authoriser: Authoriser, crypto: CryptoService) -> None:
        self._pipeline = pipeline
        self._authoriser = authoriser
        self._crypto = crypto

    def generate_data_key_batch(self, call: Call) -> shapes.GenerateDataKeyBatchResponse:
        """GenerateDataKeyBatch."""
        request: shapes.GenerateDataKeyBatchRequest = call.request
        key = call.the_key
        contexts = request.encryption_contexts
        made = [
            shapes.BatchedKey(ciphertext_blob=blob, plaintext=plaintext) for plaintext, blob in self._crypto.data_keys(key, contexts)
        ]
        self._pipeline.record_items(call, "GenerateDataKey", contexts)
        return shapes.GenerateDataKeyBatchResponse(key_id=key.arn, data_keys=made)

    def decrypt_batch(self, call: Call) -> shapes.DecryptBatchResponse:
        """DecryptBatch."""
        request: shapes.DecryptBatchRequest = call.request
        return shapes.DecryptBatchResponse(items=[self._decrypt_item(call, item) for item in request.items])

    def _decrypt_item(self, call: Call, item: shapes.DecryptItem) -> shapes.DecryptedItem:
        error_code = None
        try:
            key = self._authoriser.key_of_blob(call, item.ciphertext_blob)
            call.key = key
            self._authoriser.require(call, key, call.operation.action, item.encryption_context)
            check_state(call.operation, key.state, key.arn)
            if call.blob is not None:
                plaintext = open_blob(key, call.blob, item.encryption_context)
                return shapes.DecryptedItem(plaintext=plaintext, key_id=key.arn)
        except KmsfsError as error:
            error_code = error.code
        finally:
            self._pipeline.record_item(call, "Decrypt", item.encryption_context, error_code)
            call.key = None
        return shapes.DecryptedItem(error_code=error_code)
