# SPDX-License-Identifier: Apache-2.0
"""What a command line runs; of interpreters that is never an option's argument."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest

from otelbpf.host.command_lines import is_interpreter, program_of

TITLES = ("nginx: ", "php-fpm: ", "gunicorn: ", "puma ", "starman ")


@pytest.mark.parametrize(
    ("executable", "line", "program"),
    [
        ("nginx", "nginx: worker process", "nginx"),
        ("shop", "/opt/shop --port 80", "shop"),
        ("shop", "", "shop"),
        ("php-fpm8.2", "php-fpm: pool www", "php-fpm8.2"),
        ("python3.11", "python3 /srv/shop/serve.py --port 80", "serve.py"),
        ("python3.11", "python3 -m http.server 80", "http.server"),
        ("python3.11", "python3 -mhttp.server 80", "http.server"),
        ("python3.11", "/venv/bin/python -u -m gunicorn shop:app", "gunicorn"),
        ("python3.11", "python3 -Ium uvicorn shop:app", "uvicorn"),
        ("python3.11", "/venv/bin/python3 /venv/bin/gunicorn -w 4 shop:app", "gunicorn"),
        ("python3.11", "/venv/bin/python /venv/bin/uvicorn shop:app", "uvicorn"),
        ("python3.11", "gunicorn: worker [shop:app]", "gunicorn"),
        ("python3.11", "python3 -X importtime -W ignore -O serve.py -m other", "serve.py"),
        ("python3.11", "python3 -Xdev -Wignore serve.py", "serve.py"),
        ("python3.11", "python3 --check-hash-based-pycs never serve.py", "serve.py"),
        ("python3.11", "python3 -c 'import shop' serve.py", ""),
        ("python3.11", "python3 -uc 'import shop'", ""),
        ("python3.11", "python3 - serve.py", ""),
        ("python3.11", "python3", ""),
        ("python3.11", "", ""),
        ("python3.11", "python3 /srv/shop.pyz --port 80", "shop.pyz"),
        ("python3.11", "python3 /srv/shop/", "shop"),
        ("python3.11", "python3 .", ""),
        ("python3.11", "python3 -- -odd.py", "-odd.py"),
        ("python3.11", "python3 /dev/fd/63", ""),
        ("python3.11", "shop /srv/serve.py", "serve.py"),
        ("pypy3.10", "pypy3 serve.py", "serve.py"),
        ("node", "node /srv/shop/server.js --port 80", "server.js"),
        ("node", "node -r ./tracing.js --import ./hooks.mjs server.js", "server.js"),
        ("node", "node --require=./tracing.js --max-old-space-size=4096 server.js", "server.js"),
        ("node", "node --enable-source-maps --env-file .env --inspect server.js", "server.js"),
        ("node", "node inspect server.js", "server.js"),
        ("node", "node -e 'serve()' server.js", ""),
        ("node", "node --eval 'serve()' server.js", ""),
        ("node", "node -pe 1 server.js", ""),
        ("node", "shop-worker", "shop-worker"),
        ("ruby3.1", "ruby -I lib -r ./boot -W:no-experimental serve.rb", "serve.rb"),
        ("ruby", "ruby -Ilib -rbundler/setup --encoding utf-8 -C /srv serve.rb", "serve.rb"),
        ("ruby", "ruby -W0 -Ku /usr/bin/rackup config.ru", "rackup"),
        ("ruby", "ruby -ne serve serve.rb", ""),
        ("ruby", "puma 6.4.0 (tcp://0.0.0.0:9292) [shop]", "puma"),
        ("perl", "perl -I /srv/lib -MSocket -T -w serve.pl", "serve.pl"),
        ("perl", "perl -i.bak -Mstrict=refs serve.pl", "serve.pl"),
        ("perl", "perl -lne print serve.pl", ""),
        ("perl", "perl -Ilib -E serve", ""),
        ("perl", "starman worker", "starman"),
        ("php8.2", "php -d memory_limit=1G -c /etc/php.ini artisan serve", "artisan"),
        ("php8.2", "php -dmemory_limit=1G -f serve.php -- -x", "serve.php"),
        ("php", "php -S 0.0.0.0:80 -t public router.php", "router.php"),
        ("php", "php -S 0.0.0.0:80 -t public", ""),
        ("php", "php -r 'serve();'", ""),
        ("java", "java -Xmx1g -cp a.jar:b.jar -Dx=y com.example.Shop 80", "com.example.Shop"),
        ("java", "java -javaagent:otel.jar -jar /srv/shop-1.2.jar -jar other.jar", "shop-1.2.jar"),
        (
            "java",
            "java --module-path mods --add-opens a/b=c -m shop/com.example.Main",
            "com.example.Main",
        ),
        ("java", "java --module-path=mods --add-modules ALL-SYSTEM --module=shop", "shop"),
        ("java", "java -version", ""),
        ("dotnet", "dotnet /srv/shop.dll --urls http://*:80", "shop.dll"),
        ("dotnet", "dotnet exec --depsfile shop.deps.json --fx-version 8.0 shop.dll", "shop.dll"),
        ("dotnet", "dotnet run --project shop", ""),
        ("dash", "sh /srv/serve.sh", "serve.sh"),
        ("bash", "bash -euo pipefail +O extglob --rcfile rc serve.sh -c x", "serve.sh"),
        ("bash", "bash -lc serve x", ""),
        ("bash", "bash -s serve", ""),
        ("bash", "-bash", ""),
        ("busybox", "sh serve.sh", "serve.sh"),
        ("busybox", "httpd -f", "httpd"),
        ("busybox", "busybox httpd -f", "httpd"),
        ("busybox", "/bin/busybox sh serve.sh", "serve.sh"),
    ],
)
def test_programs(executable: str, line: str, program: str) -> None:
    # A title is one argument, which a shell would not have split either.
    is_title = line.startswith(TITLES)
    assert program_of(executable, [line] if is_title else shlex.split(line)) == program


@pytest.mark.parametrize(
    "name",
    ["python3", "python3.11", "python", "pypy3", "node", "nodejs", "MainThread", "ruby2.7", "perl",
     "perl5.36.0", "php", "php8.2", "java", "dotnet", "sh", "bash", "dash", "zsh"],
)  # fmt: skip
def test_interpreters(name: str) -> None:
    assert is_interpreter(name)


@pytest.mark.parametrize(
    "name",
    ["", "nginx", "gunicorn", "serve.py", "pythonic", "nodemon", "ssh", "sshd", "javac",
     "php-fpm8.2", "fish-shop", "rubyist", "python3-shop", "perl.shop"],
)  # fmt: skip
def test_what_is_no_interpreter(name: str) -> None:
    assert not is_interpreter(name)


@pytest.mark.impure
def test_nodes_own_list_of_options_with_arguments() -> None:
    """None of them may be taken for a flag: what follows it is no script."""
    if shutil.which("node") is None:
        pytest.skip("node is missing")
    said = subprocess.run(["node", "--help"], capture_output=True, text=True, check=True).stdout
    options = {
        option
        for line in re.findall(r"^\s+(-.*?)=\.\.\.", said, re.MULTILINE)
        for option in line.split(", ")
    }
    assert len(options) > 20
    for option in options:
        assert program_of("node", ["node", option, "value", "server.js"]) in ("server.js", "")
