"""nginx twice: as the upstream that answers at once with fixed bodies, and as the plain reverse proxy to compare with."""

import getpass
from pathlib import Path

from bench import bodies
from bench.machine import GATEWAY_CORE, LOAD_CORE, Process, free_port, port_open

_COMMON = """
user {user}; worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 600s; tcp_nodelay on; client_body_buffer_size 32k;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
{http}
}}
"""

_UPSTREAM = """
  sendfile on; tcp_nopush off; open_file_cache max=10 inactive=600s; open_file_cache_valid 600s; output_buffers 1 64k;
  server {{ listen 127.0.0.1:{plain} backlog=1024; default_type application/json; location / {{ return 200 '{answer}'; }} }}
  server {{ listen 127.0.0.1:{stream} backlog=1024; root {folder}; types {{ }} default_type text/event-stream;
    location / {{ error_page 405 =200 /stream.txt; try_files /nothere =405; }}
    location = /stream.txt {{ }} }}
"""

_PROXY = """
  upstream plain {{ server 127.0.0.1:{plain_up}; keepalive 128; keepalive_requests 100000000; }}
  upstream stream {{ server 127.0.0.1:{stream_up}; keepalive 128; keepalive_requests 100000000; }}
  proxy_http_version 1.1; proxy_set_header Connection "";
  server {{ listen 127.0.0.1:{plain} backlog=1024; location / {{ proxy_pass http://plain; }} }}
  server {{ listen 127.0.0.1:{stream} backlog=1024; location / {{ proxy_pass http://stream; proxy_buffering off; }} }}
"""


class Nginx(Process):
    """One nginx; `plain` and `stream` are the ports of its two kinds of answer."""

    def __init__(self, name: str, http: str, core: int, folder: Path, plain: int, stream: int) -> None:
        self.plain, self.stream = plain, stream
        home = folder / name
        home.mkdir()
        config = home / "nginx.conf"
        config.write_text(_COMMON.format(user=getpass.getuser(), folder=home, http=http))
        argv = ["nginx", "-e", str(home / "error.log"), "-c", str(config)]
        super().__init__(name, argv, core, folder, lambda: port_open(plain) and port_open(stream))


def upstream(folder: Path) -> Nginx:
    plain, stream = free_port(), free_port()
    text = bodies.answer().decode().replace("\\", "\\\\").replace("'", "\\'")
    http = _UPSTREAM.format(plain=plain, stream=stream, answer=text, folder=folder / "upstream")
    nginx = Nginx("upstream", http, LOAD_CORE, folder, plain, stream)
    (folder / "upstream" / "stream.txt").write_bytes(bodies.stream())
    return nginx


def reverse_proxy(folder: Path, up: Nginx) -> Nginx:
    plain, stream = free_port(), free_port()
    http = _PROXY.format(plain=plain, stream=stream, plain_up=up.plain, stream_up=up.stream)
    return Nginx("nginx", http, GATEWAY_CORE, folder, plain, stream)
