package engine

import (
	"strings"

	"github.com/ds01/ds01-proxy/policy"
)

// idLen is the length of a container or exec ID in hexadecimal digits.
const idLen = 64

// An entry is one container. Its owner never changes; its name does.
type entry struct {
	id        string
	owner     string
	name      string
	protected bool
	// legacy is true where something else than the owner label names the owner: the
	// Engine's label filters do not find it.
	legacy bool
	// labelled is the owner that the labels name.
	labelled string
	// doubtful is true while the labels may not say whose it is: there are none, or
	// it is made of an image's ID, as the Engine does for the steps of a build, whose
	// labels are what the Dockerfile says.
	doubtful bool
	// binds are the staged binds that it uses.
	binds []string
	// changes are the renames and removals of this container that were sent to
	// the Engine and whose event has not come yet. While there are any, the name
	// is not believed.
	changes []*change
}

// A change is one rename or removal on its way.
type change struct {
	answered bool
	// names are those that may be another container's, or nobody's, because of it.
	names []string
}

// object is the entry as the rules see it.
func (e *entry) object(ref string) policy.Object {
	return policy.Object{Kind: "container", ID: e.id, Ref: ref, Owner: e.owner, Protected: e.protected}
}

// A table finds containers by ID, name and prefix. It has no lock of its own.
type table struct {
	byID    map[string]*entry
	byName  map[string]*entry
	byOwner map[string]map[string]*entry
	// unsure counts, by name, the changes under way that it depends on.
	unsure map[string]int
	// legacy counts, by owner, the entries that are legacy; misled those whose labels
	// name somebody who is not the owner, by who that is.
	legacy, misled map[string]int
}

func newTable(size int) *table {
	return &table{
		byID:    make(map[string]*entry, size),
		byName:  make(map[string]*entry, size),
		byOwner: make(map[string]map[string]*entry),
		unsure:  make(map[string]int),
		legacy:  make(map[string]int),
		misled:  make(map[string]int),
	}
}

func entryOf(c Container) *entry {
	var binds []string
	if text := c.Labels[policy.LabelBinds]; text != "" && c.Labels[policy.LabelUser] != "" {
		binds = strings.Split(text, ",")
	}
	return &entry{
		binds:     binds,
		id:        c.ID,
		owner:     policy.OwnerOf(c.Labels),
		name:      ownName(c.Names),
		protected: policy.IsProtected(c.Labels),
		legacy:    c.Labels[policy.LabelUser] == "" && c.Labels[policy.LabelLegacyUser] != "",
		labelled:  policy.OwnerOf(c.Labels),
		doubtful:  policy.OwnerOf(c.Labels) == "" || strings.HasPrefix(c.Image, "sha256:"),
	}
}

// ownName picks a container's own name from those the Engine lists: the one
// without a second slash. The others are aliases that links gave it.
func ownName(names []string) string {
	for _, n := range names {
		if n = strings.TrimPrefix(n, "/"); n != "" && !strings.Contains(n, "/") {
			return n
		}
	}
	return ""
}

// add puts an entry in, unless its ID is there.
func (t *table) add(e *entry) *entry {
	if known := t.byID[e.id]; known != nil {
		return known
	}
	t.byID[e.id] = e
	own := t.byOwner[e.owner]
	if own == nil {
		own = make(map[string]*entry)
		t.byOwner[e.owner] = own
	}
	own[e.id] = e
	if e.name != "" {
		t.byName[e.name] = e
	}
	t.count(e, 1)
	return e
}

// count keeps the counts of entries that the Engine's label filters do not find,
// or find for the wrong user.
func (t *table) count(e *entry, n int) {
	if e.legacy {
		t.legacy[e.owner] += n
	}
	if e.labelled != "" && e.labelled != e.owner {
		t.misled[e.labelled] += n
	}
}

// remove takes the entry with this ID out.
func (t *table) remove(id string) {
	e := t.byID[id]
	if e == nil {
		return
	}
	t.setChanges(e, nil)
	t.count(e, -1)
	delete(t.byID, id)
	if t.byName[e.name] == e {
		delete(t.byName, e.name)
	}
	own := t.byOwner[e.owner]
	if delete(own, id); len(own) == 0 {
		delete(t.byOwner, e.owner)
	}
}

// adopt puts e in the place of a doubtful entry.
func (t *table) adopt(e *entry) {
	old := t.byID[e.id]
	if old == nil || !old.doubtful {
		return
	}
	changes := old.changes
	e.name = old.name
	t.remove(e.id)
	t.add(e)
	t.setChanges(e, changes)
}

// rename gives the entry another name.
func (t *table) rename(e *entry, name string) {
	if t.byName[e.name] == e {
		delete(t.byName, e.name)
	}
	e.name = name
	if name != "" {
		t.byName[name] = e
	}
}

// setChanges replaces an entry's changes and keeps the count by name.
func (t *table) setChanges(e *entry, changes []*change) {
	for _, c := range changes {
		for _, name := range c.names {
			t.unsure[name]++
		}
	}
	for _, c := range e.changes {
		for _, name := range c.names {
			if t.unsure[name]--; t.unsure[name] == 0 {
				delete(t.unsure, name)
			}
		}
	}
	e.changes = changes
}

// A finding is what a look-up came to.
type finding uint8

const (
	absent finding = iota
	found
	ambiguous
	unsure
)

// find resolves ref as user's: in the user's own containers first, by ID, name
// and unique prefix, then in everybody's, so that nobody can take a reference
// away from its owner by the choice of a name.
func (t *table) find(user, ref string) (*entry, finding) {
	if e := t.byID[ref]; e != nil {
		return e, found
	}
	bare := strings.TrimPrefix(ref, "/")
	if t.unsure[bare] > 0 {
		return nil, unsure
	}
	named := t.byName[bare]
	if named != nil && named.owner == user {
		return named, found
	}
	if e, how := prefixed(t.byOwner[user], ref); how != absent {
		return e, how
	}
	if named != nil {
		return named, found
	}
	return prefixed(t.byID, ref)
}

// prefixed looks for the one ID that begins with ref.
func prefixed(in map[string]*entry, ref string) (*entry, finding) {
	if ref == "" || len(ref) >= idLen {
		return nil, absent
	}
	var hit *entry
	for id, e := range in {
		if strings.HasPrefix(id, ref) {
			if hit != nil {
				return nil, ambiguous
			}
			hit = e
		}
	}
	if hit == nil {
		return nil, absent
	}
	return hit, found
}
