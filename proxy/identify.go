package proxy

import (
	"context"
	"errors"
	"fmt"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/engine"
)

// identify says who the connection's requests act for. It asks once; an error
// stays the answer to every request of the connection.
func (c *conn) identify(ctx context.Context) (*policy.Subject, error) {
	c.identified.Do(func() {
		c.identity = errors.New("the caller was not identified")
		c.peer, c.identity = c.srv.Peers.Read(c.UnixConn, c.accepted)
		if c.identity != nil {
			c.identity = fmt.Errorf("cannot tell who you are: %w", c.identity)
			return
		}
		if c.user != "" {
			c.subject, c.identity = c.onUserSocket(ctx)
		} else {
			c.subject, c.identity = c.onSharedSocket(ctx)
		}
	})
	return &c.subject, c.identity
}

// onUserSocket serves the socket's owner: the owner's own processes, those in the
// owner's containers, which choose their uid freely, and uid 0, which is a container's
// root more often than the host's, with the owner's rights and no more.
func (c *conn) onUserSocket(ctx context.Context) (policy.Subject, error) {
	who, err := c.srv.Directory.ByName(c.user)
	if err != nil {
		return policy.Subject{}, err
	}
	// In a container of the owner's, whoever the container says one is.
	own := c.peer.UID == who.UID || c.peer.UID == 0
	if id := c.peer.ContainerID; id != "" {
		obj, err := c.srv.Owners.Container(ctx, c.user, id)
		switch {
		case errors.Is(err, engine.ErrNotFound):
			// A container of something else, such as a rootless Podman's.
		case err != nil:
			return policy.Subject{}, fmt.Errorf("cannot tell whose container you are in: %w", err)
		case obj.Owner != "" && obj.Owner != c.user:
			return policy.Subject{}, fmt.Errorf("this socket belongs to %s and you are in a container of %s", c.user, obj.Owner)
		default:
			if err := c.confirm(ctx, obj); err != nil {
				return policy.Subject{}, err
			}
			own = own || obj.Owner == c.user
		}
	}
	if !own {
		return policy.Subject{}, fmt.Errorf("this socket belongs to %s and you are uid %d; use your own", c.user, c.peer.UID)
	}
	who.Admin = who.Admin && c.peer.UID == who.UID && c.peer.ContainerID == ""
	return who, nil
}

// onSharedSocket serves whoever connected: host processes by uid, processes in
// a container, which choose their uid freely, as the container's owner.
func (c *conn) onSharedSocket(ctx context.Context) (policy.Subject, error) {
	if id := c.peer.ContainerID; id != "" {
		obj, err := c.srv.Owners.Container(ctx, "", id)
		if err != nil {
			return policy.Subject{}, fmt.Errorf("cannot tell whose container you are in: %w", err)
		}
		if obj.Owner == "" {
			return policy.Subject{}, errors.New("you are in a container without an owner label")
		}
		if err := c.confirm(ctx, obj); err != nil {
			return policy.Subject{}, err
		}
		who, err := c.srv.Directory.ByName(obj.Owner)
		who.Admin = false
		return who, err
	}
	if c.peer.UID == 0 {
		return policy.Subject{User: "root", Admin: true}, nil
	}
	return c.srv.Directory.ByUID(c.peer.UID)
}

// confirm holds the peer's claim to be in a container against where the Engine
// has put that container: whoever has a cgroup of their own can give it any name.
func (c *conn) confirm(ctx context.Context, container policy.Object) error {
	pid, err := c.srv.Processes.FirstProcess(ctx, container.ID)
	if err != nil {
		return fmt.Errorf("cannot tell whose container you are in: %w", err)
	}
	within := false
	if pid > 0 {
		if within, err = c.srv.Peers.Within(c.peer, pid); err != nil {
			return fmt.Errorf("cannot tell whose container you are in: %w", err)
		}
	}
	if !within {
		return fmt.Errorf("your cgroup is named like container %.12s and is not that container's", container.ID)
	}
	return nil
}
