import ctypes, glob, os, uuid, pytest, confluent_kafka
from choreo.testing.conformance import BrokerConformance
from choreo.kafka import embedded
from choreo.kafka.embedded import EmbeddedBroker
from choreo.kafka.broker import KafkaBroker
from choreo.kafka.settings import KafkaSettings
lib=ctypes.CDLL(glob.glob(os.path.join(os.path.dirname(confluent_kafka.__file__),"..","confluent_kafka.libs","librdkafka*"))[0])
def mc():
    embedded._HOST.address()
    h=embedded._HOST._started[os.getpid()][0]
    rk=ctypes.c_void_p.from_address(id(h)+16)
    lib.rd_kafka_handle_mock_cluster.restype=ctypes.c_void_p; lib.rd_kafka_handle_mock_cluster.argtypes=[ctypes.c_void_p]
    m=lib.rd_kafka_handle_mock_cluster(rk)
    lib.rd_kafka_mock_topic_create.argtypes=[ctypes.c_void_p,ctypes.c_char_p,ctypes.c_int,ctypes.c_int]
    lib.rd_kafka_mock_group_initial_rebalance_delay_ms.argtypes=[ctypes.c_void_p,ctypes.c_int32]
    lib.rd_kafka_mock_group_initial_rebalance_delay_ms(m,3000)
    return m
P=os.environ.get("P","classic")
class B(EmbeddedBroker):
    def _ready(self):
        if P=="classic": return super()._ready()
        if self._kafka is None:
            self._kafka=KafkaBroker(KafkaSettings(bootstrap=embedded._HOST.address(),group_protocol="consumer"))
        return self._kafka
class TestEmbedded(BrokerConformance):
    deadline_s=20.0
    @pytest.fixture
    def broker(self): return B(KafkaSettings(bootstrap="embedded://"))
    @pytest.fixture
    def topic(self):
        def make(n):
            name="t-"+uuid.uuid4().hex[:8]
            assert lib.rd_kafka_mock_topic_create(mc(),name.encode(),n,1)==0
            return name
        return make
