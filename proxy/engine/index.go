package engine

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ds01/ds01-proxy/policy"
)

// maxExecs is how many execs the index remembers; older ones are asked for
// again. An entry takes about 250 bytes.
const maxExecs = 1 << 16

// An Index knows the owner of every container and exec. It is filled with one
// list and kept true by the Engine's event stream; see Run. All methods may be
// called concurrently.
type Index struct {
	client *Client
	log    *zap.Logger
	// UserOfParent, where set before Run, returns the user whose slice a cgroup
	// parent is, or "". Containers that the Engine makes by itself, for the steps of
	// a classic build, have no owner label and tell their user by that alone.
	UserOfParent func(cgroupParent string) string
	// Uses, where set before Run, is told which staged binds a container of an owner's
	// says that it uses.
	Uses func(containerID, owner string, tokens []string)
	// Gone, where set before Run, is told of containers that are removed, and Known of
	// whether one is there whenever all are listed.
	Gone  func(containerID string)
	Known func(exists func(containerID string) bool)

	// Changed, where set before Run, is told of containers that are made, started, ended,
	// changed, renamed, removed or found to be somebody else's, and Listed which there were
	// at a time. They must not wait.
	Changed func(containerID string)
	Listed  func(containerIDs []string, at time.Time)
	// Lost, where set before Run, is told that nothing is heard of containers until they
	// are listed again.
	Lost func()

	mu    sync.RWMutex
	table *table
	// synced is true while the event stream stands: only then are names and the
	// absence of a container believed.
	synced bool
	execs  map[string]string
	recent []string // execs in the order they came, a ring
	next   int
	state  *State
	// asked counts questions about containers and execs to the Engine.
	asked uint64

	// listing is held, as a channel of one, by whoever lists containers for a
	// look-up; latest is what came of the last list, which was asked for at listed.
	listing chan struct{}
	listed  time.Time
	latest  *table
}

// NewIndex returns an empty Index that asks client.
func NewIndex(client *Client, log *zap.Logger) *Index {
	return &Index{client: client, log: log, table: newTable(0), execs: make(map[string]string), listing: make(chan struct{}, 1)}
}

// Asked returns how many questions about ownership went to the Engine.
func (x *Index) Asked() uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.asked
}

// Size returns how many containers and execs are known, and whether the index
// is in step with the Engine.
func (x *Index) Size() (containers, execs int, synced bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.table.byID), len(x.execs), x.synced
}

// Container resolves ref, as user's, to a container. The owner's own containers
// are looked at first. Errors: ErrNotFound and ErrUnreachable wrapped, or the
// Engine's StatusError.
func (x *Index) Container(ctx context.Context, user, ref string) (policy.Object, error) {
	if !possible(ref) {
		return policy.Object{}, fmt.Errorf("%w: %w", ErrNotFound, noSuch(ref))
	}
	x.mu.RLock()
	e, how := x.table.find(user, ref)
	synced := x.synced
	x.mu.RUnlock()
	switch {
	case e != nil && e.id == ref:
		return e.object(ref), nil
	case !synced:
		return x.containerFromList(ctx, user, ref)
	case how == found:
		return e.object(ref), nil
	case how == ambiguous:
		return policy.Object{}, &StatusError{http.StatusBadRequest, "Multiple IDs found with provided prefix: " + ref}
	case how == unsure:
		return x.containerInMotion(ctx, user, ref)
	}
	return x.containerFromInspect(ctx, ref)
}

// containerInMotion resolves a name that is being given or taken: the Engine
// says whose it is now, and where that is not the user, the reference may still
// be a prefix of an ID of the user's own.
func (x *Index) containerInMotion(ctx context.Context, user, ref string) (policy.Object, error) {
	obj, err := x.containerFromInspect(ctx, ref)
	if err == nil && obj.Owner == user {
		return obj, nil
	}
	x.mu.RLock()
	e, how := prefixed(x.table.byOwner[user], ref)
	x.mu.RUnlock()
	if how == found {
		return e.object(ref), nil
	}
	return obj, err
}

// containerFromList resolves ref in a list that is fetched for this question.
func (x *Index) containerFromList(ctx context.Context, user, ref string) (policy.Object, error) {
	t, err := x.freshTable(ctx)
	if err != nil {
		return policy.Object{}, fmt.Errorf("resolve container %q: %w", ref, err)
	}
	switch e, how := t.find(user, ref); how {
	case found:
		return e.object(ref), nil
	case ambiguous:
		return policy.Object{}, &StatusError{http.StatusBadRequest, "Multiple IDs found with provided prefix: " + ref}
	}
	return x.containerFromInspect(ctx, ref)
}

// freshTable returns a table made of a list that was asked for after this call
// began. Those who wait for one at the same time share it.
func (x *Index) freshTable(ctx context.Context) (*table, error) {
	came := time.Now()
	select {
	case x.listing <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, ctx.Err())
	}
	defer func() { <-x.listing }()
	if x.listed.After(came) {
		return x.latest, nil
	}
	x.countQuestion()
	began := time.Now()
	t, err := x.listTable(ctx)
	if err != nil {
		return nil, err
	}
	x.listed, x.latest = began, t
	return t, nil
}

// listTable makes a table of a list.
func (x *Index) listTable(ctx context.Context) (*table, error) {
	t := newTable(0)
	err := x.client.EachContainer(ctx, func(c Container) { t.add(entryOf(c)) })
	return t, err
}

// containerFromInspect asks the Engine for one container and remembers it.
func (x *Index) containerFromInspect(ctx context.Context, ref string) (policy.Object, error) {
	x.countQuestion()
	c, err := x.client.Inspect(ctx, ref)
	if err != nil {
		return policy.Object{}, fmt.Errorf("resolve container %q: %w", ref, err)
	}
	e := entryOf(c)
	if e.doubtful && x.UserOfParent != nil {
		e = x.settled(e, c.CgroupParent)
	}
	obj := e.object(ref)
	// Only the owner is remembered: a removal may have overtaken this answer, and
	// an ID that is gone does no harm where a name that is gone would.
	e.name = ""
	x.mu.Lock()
	x.table.add(e)
	x.mu.Unlock()
	return obj, nil
}

// Exec resolves an exec ID to the container that it runs in.
func (x *Index) Exec(ctx context.Context, id string) (policy.Object, error) {
	x.mu.RLock()
	containerID, known := x.execs[id]
	x.mu.RUnlock()
	if !known {
		x.countQuestion()
		var err error
		if containerID, err = x.client.Exec(ctx, id); err != nil {
			return policy.Object{}, fmt.Errorf("resolve exec %q: %w", id, err)
		}
		x.AddExec(id, containerID)
	}
	obj, err := x.Container(ctx, "", containerID)
	if err != nil {
		return policy.Object{}, fmt.Errorf("resolve exec %q: %w", id, err)
	}
	// Messages about protection name the container.
	x.mu.RLock()
	if e := x.table.byID[obj.ID]; e != nil && e.name != "" {
		obj.Ref = e.name
	}
	x.mu.RUnlock()
	obj.Kind, obj.ID = "exec", id
	return obj, nil
}

// AddExec remembers which container an exec runs in.
func (x *Index) AddExec(id, containerID string) {
	if id == "" || containerID == "" {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, known := x.execs[id]; known {
		return
	}
	if len(x.recent) < maxExecs {
		x.recent = append(x.recent, id)
	} else {
		delete(x.execs, x.recent[x.next])
		x.recent[x.next] = id
		x.next = (x.next + 1) % maxExecs
	}
	x.execs[id] = containerID
}

// AddContainer remembers a container that was just created.
func (x *Index) AddContainer(c Container) {
	if c.ID == "" {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.table.add(entryOf(c))
	if name := ownName(c.Names); name != "" && e.name == "" && len(e.changes) == 0 {
		x.table.rename(e, name)
	}
}

// Filters reports whether the Engine's label filters find a user's containers: not
// where only the older label names the owner, or where a label lies.
func (x *Index) Filters(user string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.table.legacy[user] == 0 && x.table.misled[user] == 0
}

// OwnerOf returns the owner of a container that the index has.
func (x *Index) OwnerOf(id string) (owner string, known bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	e := x.table.byID[id]
	if e == nil {
		return "", false
	}
	return e.owner, true
}

// BeginChange says that a request is about to remove the container, or to rename
// it to name. Until the Engine's event about it comes, neither its name nor the
// new one is believed. The function that is returned must be called with the
// outcome: whether it was done, or may have been.
func (x *Index) BeginChange(id, name string) (end func(done bool)) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.table.byID[id]
	if e == nil {
		return func(bool) {}
	}
	c := &change{}
	for _, n := range []string{e.name, strings.TrimPrefix(name, "/")} {
		if n != "" {
			c.names = append(c.names, n)
		}
	}
	// Where another change is still under way, the name at this moment may be one
	// of its.
	for _, other := range e.changes {
		c.names = append(c.names, other.names...)
	}
	x.table.setChanges(e, append(e.changes[:len(e.changes):len(e.changes)], c))
	return func(done bool) {
		x.mu.Lock()
		defer x.mu.Unlock()
		if done {
			c.answered = true
			return
		}
		if e := x.table.byID[id]; e != nil {
			x.table.setChanges(e, without(e.changes, c))
		}
	}
}

func without(changes []*change, c *change) []*change {
	var out []*change
	for _, other := range changes {
		if other != c {
			out = append(out, other)
		}
	}
	return out
}

// adopt finds out whose a doubtful container is.
func (x *Index) adopt(ctx context.Context, id string) {
	if x.UserOfParent == nil {
		return
	}
	c, err := x.client.Inspect(ctx, id)
	if err != nil {
		// Gone already, or the Engine is: either way nobody uses it now.
		return
	}
	e := x.settled(entryOf(c), c.CgroupParent)
	x.mu.Lock()
	x.table.adopt(e)
	x.mu.Unlock()
	if x.Changed != nil {
		// It may have been counted for somebody else.
		x.Changed(id)
	}
}

// settled returns the entry of a doubtful container with the owner that its
// cgroup parent names: the proxy sets that, whatever a Dockerfile says.
func (x *Index) settled(e *entry, cgroupParent string) *entry {
	sure := *e
	sure.doubtful = false
	if user := x.UserOfParent(cgroupParent); user != "" && user != e.owner {
		sure.owner, sure.legacy = user, true
	}
	return &sure
}

func (x *Index) countQuestion() {
	x.mu.Lock()
	x.asked++
	x.mu.Unlock()
}

// possible reports whether the Engine could know a container by ref: its names
// are made of [a-zA-Z0-9_.-], with slashes between those that links give.
func possible(ref string) bool {
	for i := range len(ref) {
		c := ref[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && !strings.ContainsRune("_.-/", rune(c)) {
			return false
		}
	}
	bare := strings.TrimPrefix(ref, "/")
	return bare != "" && path.Clean("/"+bare) == "/"+bare
}

func noSuch(ref string) error {
	return &StatusError{http.StatusNotFound, "No such container: " + ref}
}

// Unreachable reports whether err means that the Engine did not answer.
func Unreachable(err error) bool { return errors.Is(err, ErrUnreachable) }
