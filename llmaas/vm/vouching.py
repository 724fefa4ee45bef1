"""What the host tells the guest's daemon of who a client is.

Law: values only. The host's kernel says the user; a client can say nothing that makes it another user's app or the
operator. The guest's daemon believes the host, as it must: who owns the virtual machine owns what is in it.

The daemon in the guest sees one peer only. So each client's hello is read here, and made anew:

    host's socket        hello                the guest's socket, and the hello
    llmaas.sock          without a token      llmaas-admin.sock, on behalf of the client's user (``uid``)
    llmaas.sock          with a token         llmaas.sock, as it is: the token alone says whose app it is
    llmaas-admin.sock    of the owner, root   llmaas-admin.sock, as it is: this is the operator
"""

from __future__ import annotations

from llmaas.api.caller import Door
from llmaas.api.hello import hello_frame, read_hello
from llmaas.api.wire import MAX_REQUEST_VALUES, encode, read_body
from llmaas.errors import Forbidden


def vouched(body: bytes, door: Door, uid: int, owner: int) -> tuple[Door, bytes]:
    """The guest's door for a client of user ``uid`` that sent a first frame with this ``body`` at ``door``, and the
    frame that it is sent there. ``owner``: the user who runs the virtual machine. Raises BadRequest, Forbidden,
    MalformedFrame, VersionMismatch."""
    hello = read_hello(read_body(body, MAX_REQUEST_VALUES))
    is_operator = door is Door.ADMIN and uid in (0, owner)
    if hello.uid is not None and not is_operator:
        raise Forbidden("field 'uid': connections on behalf of other users are for the operator")
    if is_operator:
        to, on_behalf_of = Door.ADMIN, hello.uid
    elif hello.token is not None:
        to, on_behalf_of = Door.APPS, None
    else:
        to, on_behalf_of = Door.ADMIN, uid
    frame = hello_frame(
        hello.app, hello.client, on_behalf_of, hello.token, hello.model, told_of_loading=hello.told_of_loading
    )
    return to, encode(frame)
