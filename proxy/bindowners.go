package proxy

import (
	"errors"
	"net/http"
	"strings"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/binds"
	"github.com/ds01/ds01-proxy/proxy/engine"
	"os"
)

// caller is who opens the sources: the process that asks, with its groups, or, for
// what asks from a container or as root, the user without any.
func (x *exchange) caller() (binds.Caller, error) {
	c := binds.Caller{UID: x.subject.UID, GID: x.subject.GID}
	if x.conn.peer.ContainerID != "" || x.conn.peer.UID != x.subject.UID {
		return c, nil
	}
	groups, err := x.srv.Peers.Groups(x.conn.UnixConn)
	c.GID, c.Groups = x.conn.peer.GID, groups
	return c, err
}

// account is the caller as the rules know it.
func account(c binds.Caller) policy.Account {
	return policy.Account{UID: c.UID, Groups: append([]uint32{c.GID}, c.Groups...)}
}

// user is whom the container runs as.
func (b *binder) user() string {
	if b.req.User != "" {
		return b.req.User
	}
	return b.x.runs.User
}

// runsAs decides about whom the container runs as, whatever its image calls them.
func (b *binder) runsAs() (policy.Verdict, error) {
	user, p := b.user(), b.x.profile()
	if strings.Contains(user, "+") {
		return policy.Verdict{}, badRequest("the image runs as the user %q: name another with --user", user)
	}
	if p.BindsAsRoot || policy.IsRoot(user) {
		return policy.BindsAs(p, b.x.subject, 0), nil
	}
	uid, _, err := b.x.srv.Users.Lookup(b.x.r.Context(), b.x.runs.ID, user)
	return policy.BindsAs(p, b.x.subject, uid), err
}

// choose decides about the way to map owners.
func (b *binder) choose() (policy.BindMap, policy.Verdict) {
	return policy.ChooseMap(b.x.profile(), b.req.Labels[policy.LabelBindMap], b.worker())
}

// worker is who works with the container's files: its user, or of a dev container
// the one that its tools become.
func (b *binder) worker() string {
	if remote := b.remote(); remote != "" {
		return remote
	}
	return b.user()
}

func (b *binder) remote() string { return policy.RemoteUser(b.req.Labels, b.x.runs.Labels) }

// workerIDs are the worker's ids in the container. Where a dev container's tools make
// that user later, or name it by a variable of theirs, it gets the caller's own.
func (b *binder) workerIDs(own *binds.Map) (uid, gid uint32, err error) {
	x := b.x
	uid, gid, err = x.srv.Users.Lookup(x.r.Context(), x.runs.ID, b.worker())
	var unknown *engine.StatusError
	if errors.As(err, &unknown) && unknown.Status == http.StatusBadRequest && b.remote() != "" {
		return own.UID, own.GID, nil
	}
	return uid, gid, err
}

// owners decides whose the files are inside.
func (b *binder) owners(f *os.File, one policy.HostBind) (*binds.Map, policy.Verdict, error) {
	if b.asked {
		return b.whose, policy.Pass(), nil
	}
	x, s := b.x, b.x.subject
	choice, v := b.choose()
	if !v.Allowed() {
		return nil, v, nil
	}
	m := &binds.Map{UID: s.UID, GID: b.caller.GID}
	switch choice {
	case policy.MapRoot:
		if _, group, _ := strings.Cut(b.worker(), ":"); group != "" {
			var err error
			if _, m.ToGID, err = x.srv.Users.Lookup(x.r.Context(), x.runs.ID, "0:"+group); err != nil {
				return nil, policy.Verdict{}, err
			}
		}
	case policy.MapUser:
		m.ToUID, m.ToGID = m.UID, m.GID
	case policy.MapContainer:
		var err error
		if m.ToUID, m.ToGID, err = b.workerIDs(m); err != nil {
			return nil, policy.Verdict{}, err
		}
	case policy.MapNone:
		safe, err := binds.NoSuidNoDev(f)
		if err != nil {
			return nil, policy.Verdict{}, err
		}
		if !safe {
			return nil, policy.RefuseBind(x.profile(), one, "its file system honours set-user-id programs or devices", "Leave the label "+policy.LabelBindMap+" out."), nil
		}
		m = nil
	}
	b.whose, b.asked = m, choice != policy.MapNone
	return m, v, nil
}

// onHost is a map as the kernel sees it, for files of a group.
func (b *binder) onHost(m *binds.Map, group uint32) *binds.Map {
	if m == nil {
		return nil
	}
	wide := *m
	wide.GID = group
	wide.ToUID += b.rootUID
	wide.ToGID += b.rootGID
	return &wide
}

// unmapped decides about a bind whose owners cannot be mapped.
func (b *binder) unmapped(one policy.HostBind) policy.Verdict {
	p := b.x.profile()
	if b.rootUID != 0 {
		return policy.RefuseBind(p, one, "its file system (NFS, for one) cannot map owners, as this Engine's containers need it", "Copy what you need to a directory of yours, or use a named volume: -v NAME:/path.")
	}
	b.oneself = true
	return policy.UnmappedBind(p, account(b.caller), b.req, b.x.runs.WorkingDir, one)
}
