"""Where is Apache Kafka itself? Its jars, found in .cache or fetched once through Maven, and a Java that can run them."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

KAFKA_VERSION = "4.3.1"
LOG4J_VERSION = "2.25.1"
MIN_JAVA = 17
FETCH_DEADLINE_S = 600.0

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / f"kafka-{KAFKA_VERSION}"
LOG_CONFIG = Path(__file__).with_name("log4j2.properties")

_POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion><groupId>choreo</groupId><artifactId>kafka-for-tests</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>{KAFKA_VERSION}</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
      <version>{LOG4J_VERSION}</version></dependency>
  </dependencies>
</project>
"""


class KafkaUnavailableError(RuntimeError):
    """No Kafka can be started here; the message is one line that says what is missing."""


@cache
def java() -> str:
    """The `java` of JAVA_HOME, else of PATH. Raises KafkaUnavailableError unless it is Java 17 or newer."""
    home = os.environ.get("JAVA_HOME")
    found = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if found is None or not Path(found).exists():
        raise KafkaUnavailableError(f"Kafka needs Java {MIN_JAVA} or newer: no java at {found or 'PATH'}; install a JRE or set JAVA_HOME")
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False, timeout=60).stderr
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    if version is None or int(version[1]) < MIN_JAVA:
        raise KafkaUnavailableError(f"Kafka needs Java {MIN_JAVA} or newer: {found} says {said.strip().splitlines()[:1]}; set JAVA_HOME")
    return found


def kafka_jars() -> Path:
    """The directory with Kafka's jars: CHOREO_KAFKA_JARS as it is, else the cache, filled first if need be (12-30 s).

    Two runs at once fetch once: the second waits. Raises KafkaUnavailableError.
    """
    given = os.environ.get("CHOREO_KAFKA_JARS")
    if given:
        if not any(Path(given).glob("kafka_2.13-*.jar")):
            raise KafkaUnavailableError(f"CHOREO_KAFKA_JARS={given}: no kafka_2.13-*.jar there; unset it to fetch Kafka through Maven")
        return Path(given)
    jars = CACHE / "lib"
    if not _complete(jars):
        CACHE.mkdir(parents=True, exist_ok=True)
        with locked(CACHE / "lock"):
            if not _complete(jars):
                _fetch(jars)
    return jars


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds `path` as a lock between processes; it is released when the process ends, however that may be."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _complete(jars: Path) -> bool:
    return (jars / ".complete").exists()


def _fetch(jars: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaUnavailableError("fetching Kafka's jars needs Maven: no mvn in PATH; install it or set CHOREO_KAFKA_JARS")
    partial = jars.with_name("lib.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pom = CACHE / "pom.xml"
    pom.write_text(_POM)
    print(f"fetching Apache Kafka {KAFKA_VERSION} through Maven into {jars}", file=sys.stderr)
    command = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", f"-DoutputDirectory={partial}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=FETCH_DEADLINE_S)
    except subprocess.TimeoutExpired as error:
        raise KafkaUnavailableError(f"fetching Kafka's jars took over {FETCH_DEADLINE_S:g} s; see `{' '.join(command)}`") from error
    if done.returncode != 0 or not any(partial.glob("kafka_2.13-*.jar")):
        said = next((line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line), "it said nothing")
        raise KafkaUnavailableError(f"Maven could not fetch Kafka's jars (exit {done.returncode}): {said[:300]}")
    # The marker is the last thing written before the directory gets its name.
    (partial / ".complete").write_text(KAFKA_VERSION + "\n")
    shutil.rmtree(jars, ignore_errors=True)
    partial.rename(jars)


if __name__ == "__main__":
    print(kafka_jars())
