"""Our Redis transport keeps one client for each channel, and lets go of it with its connections."""

import pytest

from tests.services import private_valkey
from workers.celery import Transport, build_app


def test_one_client_for_all_calls_of_a_channel():
    with private_valkey() as valkey, build_app(valkey.url, ("cloudsuite",)).connection_for_write() as connection:
        assert isinstance(connection.transport, Transport)
        channel = connection.default_channel
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
        channel._disconnect_pools()
        with channel.conn_or_acquire() as third:
            assert third is not first
            assert third.ping()


def test_a_connection_that_is_gone_is_an_error_that_kombu_expects():
    """It acknowledges what it holds when the broker has died; any other error would end the worker."""
    with private_valkey() as valkey, build_app(valkey.url, ("cloudsuite",)).connection_for_write() as connection:
        channel = connection.default_channel
        expected = connection.connection_errors
        channel._disconnect_pools()
        channel.connection.client = None  # as kombu leaves it when it lets a connection go
        with pytest.raises(expected, match="the connection to the broker is closed"):
            channel._create_client()


def test_other_brokers_have_their_own_transport():
    for url in ("rediss://broker.example:6380/0", "amqp://guest@broker.example//"):
        assert build_app(url, ("cloudsuite",)).conf.broker_transport is None
