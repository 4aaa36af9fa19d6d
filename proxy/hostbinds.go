package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"github.com/ds01/ds01-proxy/policy"
	"github.com/ds01/ds01-proxy/proxy/binds"
)

// A bindRoot is a root of the profile as it is on this host.
type bindRoot struct {
	path     string
	readOnly bool
}

// createBinds puts staged mounts in the place of the host's paths that a container
// is to bind, each opened as the user would.
func (x *exchange) createBinds(req *container.CreateRequest) (policy.Verdict, error) {
	verdict := policy.Verdict{Outcome: policy.Allow, Rule: "host-binds"}
	var inherited []binds.Bind
	for _, from := range x.from {
		inherited = append(inherited, x.srv.Staged.Of(from)...)
	}
	list := policy.HostBinds(req)
	if x.profile().OwnershipOnly || len(list)+len(inherited) == 0 {
		return verdict, nil
	}
	if len(list) > maxBinds {
		return policy.Verdict{}, badRequest("the request binds %d paths of the host; %d is the most", len(list), maxBinds)
	}
	st, err := x.srv.Owners.State(x.r.Context())
	if err != nil {
		return policy.Verdict{}, err
	}
	b := &binder{x: x, req: req, private: append([]string{st.DataRoot}, x.srv.Private...)}
	for _, root := range x.profile().Binds {
		if path, ok := b.root(root.Path); ok {
			b.roots = append(b.roots, bindRoot{path, root.ReadOnly})
		}
	}
	if b.rootUID, b.rootGID, err = st.Remap(); err != nil {
		return policy.Verdict{}, err
	}
	if b.caller, err = x.caller(); err != nil {
		return policy.Verdict{}, err
	}
	if v, err := b.runsAs(); err != nil || !v.Allowed() {
		return v, err
	}
	for _, one := range inherited {
		if _, v := b.choose(); !v.Allowed() {
			return v, nil
		}
		if one.Unmapped {
			if v := b.unmapped(policy.HostBind{Field: "--volumes-from (" + one.Source + ")"}); !v.Allowed() {
				return v, nil
			}
		}
		x.inherited = append(x.inherited, one.Token)
		b.writable = b.writable || !one.ReadOnly
	}
	for _, one := range list {
		var v policy.Verdict
		if own := x.srv.SocketOf(x.subject.User); policy.IsEngineSocket(one.Source, x.srv.Engine, x.srv.Shared, own) {
			// "My Docker" is the user's own.
			v, err = b.socket(one, own)
		} else {
			v, err = b.bind(one)
		}
		if err != nil || !v.Allowed() {
			return v, err
		}
	}
	if b.writable {
		policy.HardenBinds(req)
	}
	x.oneself = x.oneself || b.oneself
	return verdict, nil
}

// maxBinds is how many paths of the host one container may bind.
const maxBinds = 64

// A binder stages the binds of one container.
type binder struct {
	x       *exchange
	req     *container.CreateRequest
	caller  binds.Caller
	roots   []bindRoot
	private []string

	// rootUID and rootGID are container root's ids on the host.
	rootUID, rootGID uint32

	writable bool
	// oneself is true where the container must be its user and nobody else.
	oneself bool
	// whose is asked for once.
	whose *binds.Map
	asked bool
}

// root is where a root of a profile is on this host. Links in it are the admin's,
// but not below a home directory, where they are the user's.
func (b *binder) root(path string) (string, bool) {
	rest, home := strings.CutPrefix(path, "$HOME")
	if home {
		if path = b.x.subject.Home; path == "" || !filepath.IsAbs(path) {
			return "", false
		}
	}
	real := b.x.srv.roots.real(path)
	if real == "" {
		return "", false
	}
	if home {
		real += rest
	}
	return real, real != "/"
}

// inside lists the roots that are for writing, or all.
func (b *binder) inside(real string, write bool) bool {
	for _, root := range b.roots {
		if (!write || !root.readOnly) && binds.Inside(real, []string{root.path}) {
			return !policy.NeverBound(real, b.private)
		}
	}
	return false
}

// bind opens and stages one path.
func (b *binder) bind(one policy.HostBind) (policy.Verdict, error) {
	x, p := b.x, b.x.profile()
	allowed := policy.BindRoots(p.Binds)
	if one.Relative {
		return policy.RefuseBind(p, one, "it is no absolute path", allowed), nil
	}
	var create func(string) bool
	if one.MayCreate && !one.ReadOnly {
		create = func(real string) bool { return b.inside(real, true) }
	}
	f, real, err := x.openSource(b.caller, one.Source, !one.ReadOnly, create)
	const outside = "it is not below a directory that may be bound"
	var (
		unusable *binds.OpenError
		busy     *statusError
	)
	switch {
	case errors.As(err, &unusable) && unusable.Real != "" && !b.inside(unusable.Real, false):
		return policy.RefuseBind(p, one, outside, allowed), nil
	case unusable != nil && unusable.Real != "" && !one.ReadOnly && !b.inside(unusable.Real, true):
		return policy.RefuseBind(p, one, "it may be bound with :ro only", allowed), nil
	case errors.As(err, &busy):
		return policy.Verdict{}, err
	case errors.Is(err, unix.ENOENT):
		return policy.RefuseBind(p, one, "there is no such path, or none that you may make here", allowed), nil
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return policy.RefuseBind(p, one, "you may not "+verb(one.ReadOnly)+" it on this host", "Ask its owner for the right to, or use :ro. "+allowed), nil
	case err != nil:
		return policy.RefuseBind(p, one, err.Error(), allowed), nil
	}
	defer f.Close()
	switch {
	case !b.inside(real, false):
		return policy.RefuseBind(p, one, outside, allowed), nil
	case !one.ReadOnly && !b.inside(real, true):
		return policy.RefuseBind(p, one, "it may be bound with :ro only", allowed), nil
	}
	var roots []string
	for _, root := range b.roots {
		roots = append(roots, root.path)
	}
	return b.stage(f, one, b.caller.GID, binds.Bind{Source: one.Source, Real: real, Roots: roots, ReadOnly: one.ReadOnly})
}

// socket puts the user's own socket in the place of the Engine's.
func (b *binder) socket(one policy.HostBind, own string) (policy.Verdict, error) {
	f, real, err := b.x.openSource(b.caller, own, true, nil)
	if err != nil {
		return policy.Verdict{}, err
	}
	defer f.Close()
	one.ReadOnly = false
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return policy.Verdict{}, fmt.Errorf("%s: %w", one.Field, err)
	}
	// The kernel lets nobody write to what has an owner without a place in the map.
	return b.stage(f, one, st.Gid, binds.Bind{Source: own, Real: real, Roots: []string{real}, Socket: true})
}

// stage stages what was opened and checked; group is the one on disk that is mapped.
func (b *binder) stage(f *os.File, one policy.HostBind, group uint32, what binds.Bind) (policy.Verdict, error) {
	x := b.x
	whose, v, err := b.owners(f, one)
	if err != nil || !v.Allowed() || x.subject.Mode != policy.ModeFull {
		return v, err
	}
	what.User, what.Caller, what.Map = x.subject.User, b.caller, b.onHost(whose, group)
	path, err := x.srv.Stage.Add(f, what)
	if errors.Is(err, binds.ErrNoMapping) {
		if v := b.unmapped(one); !v.Allowed() {
			return v, nil
		}
		what.Map, what.Unmapped = nil, true
		path, err = x.srv.Stage.Add(f, what)
	}
	switch {
	case errors.Is(err, binds.ErrTooMany):
		return policy.RefuseBind(x.profile(), one, err.Error(), ""), nil
	case err != nil:
		return policy.Verdict{}, fmt.Errorf("%s: %w", one.Field, err)
	}
	token := filepath.Base(path)
	x.staged = append(x.staged, token)
	x.atEnd(func() {
		// Where nobody knows whether the Engine made the container, the bind waits for its
		// event.
		if !x.given && (!x.forwarded || x.rec.Status != 0) {
			x.logged("take away the binds of a container that was not made", x.srv.Stage.Drop(token))
		}
	})
	b.writable = b.writable || !one.ReadOnly
	if whose != nil && whose.ToUID == 0 && !one.ReadOnly && slices.Contains(x.runs.Volumes, one.Target) {
		x.warnings = append(x.warnings, policy.ChownWarning(one))
	}
	one.Set(path)
	return v, nil
}

// maxOpening is how many paths of the host a user may have being opened: each holds
// a thread for as long as a file system of the user's own takes.
const maxOpening = 8

// openingWait is how long a path waits for others of its user's to be opened.
const openingWait = time.Second

// openSource opens a path for the caller.
func (x *exchange) openSource(c binds.Caller, path string, write bool, create func(string) bool) (*os.File, string, error) {
	user := x.subject.User
	for began := time.Now(); !x.srv.opening.take(user, 1); {
		// Those that answer are opened in a moment.
		if time.Since(began) < openingWait && x.r.Context().Err() == nil {
			time.Sleep(openingWait / 100)
			continue
		}
		return nil, "", &statusError{http.StatusTooManyRequests, "too many paths of yours are being opened, or do not answer; wait until they do"}
	}
	return binds.OpenSoon(c, path, write, create, func() { x.srv.opening.give(user, 1) })
}

func verb(readOnly bool) string {
	if readOnly {
		return "read"
	}
	return "write"
}

// giveBinds gives a container that was made its staged binds, and those of the
// containers that it takes mounts from.
func (x *exchange) giveBinds(id string) {
	if tokens := x.tokens(); len(tokens) > 0 {
		x.given = true
		x.logged("remember a container's binds", x.srv.Stage.Use(id, x.subject.User, tokens))
	}
}

// tokens are the staged binds that a container gets.
func (x *exchange) tokens() []string { return slices.Concat(x.staged, x.inherited) }

// readyBinds makes sure, before a container starts, that its binds are there.
func (x *exchange) readyBinds(id string) policy.Verdict {
	for _, b := range x.srv.Staged.Of(id) {
		if err := x.srv.Remounter.Ready(b); err != nil {
			return policy.RefuseBind(x.profile(), policy.HostBind{Field: "-v " + b.Source}, err.Error(),
				"Make it what it was when the container was created, or create the container anew.")
		}
	}
	return policy.Pass()
}

// stagedPath finds places below a staging directory in JSON.
func stagedPath(dir string) *regexp.Regexp {
	return regexp.MustCompile(regexp.QuoteMeta(dir) + `/[a-z0-9]{26}`)
}

// showBinds puts the users' own paths in place of the staged ones in an answer.
func (x *exchange) showBinds(text []byte) []byte {
	if !bytes.Contains(text, []byte(x.srv.StageDir+"/")) {
		return text
	}
	return x.srv.stagedPath.ReplaceAllFunc(text, func(path []byte) []byte {
		source, ok := x.srv.Staged.Source(string(path))
		if !ok {
			return path
		}
		quoted, err := json.Marshal(source)
		if err != nil {
			return path
		}
		return quoted[1 : len(quoted)-1]
	})
}
