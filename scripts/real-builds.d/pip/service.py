"""Serves one page, asks for it once, and ends."""
import threading
import urllib.request
from wsgiref.simple_server import make_server

import bottle

app = bottle.Bottle()


@app.route("/")
def page():
    return "hello from pip"


server = make_server("127.0.0.1", 8000, app)
server.RequestHandlerClass.log_message = lambda *arguments: None
threading.Thread(target=server.handle_request).start()
print(urllib.request.urlopen("http://127.0.0.1:8000/").read().decode())
