"""Our Redis transport keeps one client for each channel, and lets go of it with its connections."""

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


def test_other_brokers_have_their_own_transport():
    for url in ("rediss://broker.example:6380/0", "amqp://guest@broker.example//"):
        assert build_app(url, ("cloudsuite",)).conf.broker_transport is None
