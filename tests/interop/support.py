# SPDX-License-Identifier: MIT
# Extendible WebSocket Server

"""What the Python tests share: starting and stopping servers, tests made from tables, a
time limit for each test, and the last line "N passed, N failed"."""

import atexit
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import unittest

SECONDS_PER_TEST = 15
SECONDS_TO_START_OR_END = 10

ECHO = os.environ.get('ECHO', 'examples/echo')
INTEROP_SERVER = os.environ.get('INTEROP_SERVER', '.build/interop-server')
RUNNING = os.environ.get('RUNNING')  # a folder with a file for each running process


class Server:
    """A server process. Once the constructor returns, it listens on `port`."""

    def __init__(self, *command):
        self.name = os.path.basename(command[0])
        self.port = None
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.note = pathlib.Path(RUNNING, str(self.process.pid)) if RUNNING else None
        if self.note:
            self.note.touch()
        atexit.register(self.kill)
        self.wait_for_port()

    def wait_for_port(self):
        port_is_known = threading.Event()
        threading.Thread(target=self.read_output, args=[port_is_known], daemon=True).start()
        port_is_known.wait(SECONDS_TO_START_OR_END)
        if self.port is None:
            self.kill()
            raise RuntimeError(f'{self.name} printed no port')

    def read_output(self, port_is_known):
        # Goes on reading after the port, so that the server never blocks on a full pipe.
        for line in self.process.stdout:
            found = re.search(r'port (\d+)', line)
            if found and self.port is None:
                self.port = int(found.group(1))
                port_is_known.set()
        port_is_known.set()

    def url(self, path='/'):
        return f'ws://localhost:{self.port}{path}'

    def stop(self):
        """Stops it as a user would, with SIGINT. It must exit in time, with status 0."""
        self.process.send_signal(signal.SIGINT)
        try:
            status = self.process.wait(SECONDS_TO_START_OR_END)
        finally:
            self.kill()
        if status != 0:
            raise AssertionError(f'{self.name} exited with status {status}')

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.note:
            self.note.unlink(missing_ok=True)


def start_for_module(*command):
    """For setUpModule(): starts a server that is stopped after the module's tests."""
    server = Server(*command)
    unittest.addModuleCleanup(server.stop)
    return server


class TimedTest(unittest.TestCase):
    """A test that fails after SECONDS_PER_TEST instead of hanging."""

    def run(self, result=None):
        signal.signal(signal.SIGALRM, self.too_long)
        signal.alarm(SECONDS_PER_TEST)
        try:
            return super().run(result)
        finally:
            signal.alarm(0)

    def too_long(self, *_):
        raise TimeoutError(f'timed out after {SECONDS_PER_TEST} seconds')


def for_each(table):
    """Decorates a method of a TimedTest, to run it for each row of a table: the key is a
    label that completes the method's name, the value is the method's arguments."""
    def mark(method):
        method.table = table
        return method
    return mark


def with_tables(test_class):
    """Class decorator: makes a test of each row given to for_each()."""
    for method in [m for m in vars(test_class).values() if hasattr(m, 'table')]:
        for label, arguments in method.table.items():
            setattr(test_class, f'test_{method.__name__}: {label}', one_row(method, arguments))
    return test_class


def one_row(method, arguments):
    return lambda test: method(test, *arguments)


class SentenceResult(unittest.TextTestResult):
    """Prints each test as a sentence, and counts those that pass."""

    passed = 0

    def getDescription(self, test):
        name = getattr(test, '_testMethodName', str(test))
        return '  ' + name.replace('test_', '', 1).replace('_', ' ')

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1


def main():
    """Runs the tests of the main module."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that servers are killed too
    tests = unittest.defaultTestLoader.loadTestsFromModule(sys.modules['__main__'])
    runner = unittest.TextTestRunner(stream=sys.stdout, verbosity=2, resultclass=SentenceResult)
    result = runner.run(tests)
    failed = len(result.failures) + len(result.errors)
    print(f'{result.passed} passed, {failed} failed')
    sys.exit(0 if result.passed and not failed else 1)
