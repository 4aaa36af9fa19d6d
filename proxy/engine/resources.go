package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/ds01/ds01-proxy/policy"
)

// Resources says whose networks and volumes are. It asks the Engine each time:
// a volume's name can become another user's between two requests, and these are
// rare beside those about containers. What it learns is kept for events, which
// carry no labels.
type Resources struct {
	client *Client

	mu       sync.Mutex
	networks map[string]string // owner by ID
	volumes  map[string]string // owner by name
	// shown are the names that owners know their networks by, by owner and the
	// Engine's name, where the two differ.
	shown map[string]map[string]string
}

// maxLearnt bounds what is kept for events.
const maxLearnt = 1 << 16

// NewResources returns Resources that ask client.
func NewResources(client *Client) *Resources {
	return &Resources{client: client, networks: make(map[string]string), volumes: make(map[string]string)}
}

// A Network is what decides about a network.
type Network struct {
	ID     string `json:"Id"`
	Name   string
	Labels map[string]string
}

// A Volume is what decides about a volume.
type Volume struct {
	Name   string
	Labels map[string]string
}

// Networks lists all networks.
func (r *Resources) Networks(ctx context.Context) ([]Network, error) {
	var list []Network
	if err := r.client.getJSON(ctx, "/networks", &list); err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.networks) > maxLearnt {
		clear(r.networks)
	}
	r.shown = make(map[string]map[string]string)
	for _, n := range list {
		owner := policy.OwnerOf(n.Labels)
		r.networks[n.ID] = owner
		if shown := policy.NetworkName(n.Name, n.Labels); shown != n.Name {
			if r.shown[owner] == nil {
				r.shown[owner] = make(map[string]string)
			}
			r.shown[owner][n.Name] = shown
		}
	}
	return list, nil
}

// Renamed returns the names that a user knows their networks by, by the Engine's
// names, where the two differ. The first call asks the Engine.
func (r *Resources) Renamed(ctx context.Context, user string) (map[string]string, error) {
	r.mu.Lock()
	shown := r.shown
	r.mu.Unlock()
	if shown == nil {
		if _, err := r.Networks(ctx); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shown[user], nil
}

// AddNetwork remembers that a user's network has another name in the Engine.
func (r *Resources) AddNetwork(user, name, shown string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shown == nil {
		// The next question reads all of them.
		return
	}
	// The maps that were given out are not changed.
	names := maps.Clone(r.shown[user])
	if names == nil {
		names = make(map[string]string)
	}
	names[name] = shown
	r.shown = maps.Clone(r.shown)
	r.shown[user] = names
}

// Network resolves ref, as user's, to a network: in the user's own first, by ID,
// name and unique prefix, then among the built-in ones, then in everybody's. The
// built-in ones have the kind "network" and the owner "" and are named in Ref.
func (r *Resources) Network(ctx context.Context, user, ref string) (policy.Object, error) {
	list, err := r.Networks(ctx)
	if err != nil {
		return policy.Object{}, err
	}
	var own, built, others []Network
	for _, n := range list {
		switch owner := policy.OwnerOf(n.Labels); {
		case owner == user:
			own = append(own, n)
		case owner == "" && policy.BuiltInNetwork(n.Name):
			built = append(built, n)
		default:
			others = append(others, n)
		}
	}
	for _, group := range [][]Network{own, built, others} {
		n, err := pick(group, ref)
		if err != nil {
			return policy.Object{}, err
		}
		if n != nil {
			return policy.Object{Kind: "network", ID: n.ID, Ref: policy.NetworkName(n.Name, n.Labels), Owner: policy.OwnerOf(n.Labels), Protected: policy.IsProtected(n.Labels)}, nil
		}
	}
	return policy.Object{}, fmt.Errorf("%w: %w", ErrNotFound, &StatusError{http.StatusNotFound, "network " + ref + " not found"})
}

// pick finds the network that ref says: by ID, by name, by unique prefix.
func pick(list []Network, ref string) (*Network, error) {
	var named, prefixed []*Network
	for i := range list {
		switch n := &list[i]; {
		case n.ID == ref:
			return n, nil
		case n.Name == ref, policy.NetworkName(n.Name, n.Labels) == ref:
			named = append(named, n)
		case ref != "" && strings.HasPrefix(n.ID, ref):
			prefixed = append(prefixed, n)
		}
	}
	for _, found := range [][]*Network{named, prefixed} {
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return nil, &StatusError{http.StatusBadRequest, fmt.Sprintf("network %s is ambiguous (%d matches found); use an ID", ref, len(found))}
		}
	}
	return nil, nil
}

// Volume looks a volume up by its name.
func (r *Resources) Volume(ctx context.Context, name string) (policy.Object, error) {
	var v Volume
	if err := r.client.getJSON(ctx, "/volumes/"+url.PathEscape(name), &v); err != nil {
		if errors.Is(err, ErrNotFound) {
			return policy.Object{}, fmt.Errorf("%w: %w", ErrNotFound, &StatusError{http.StatusNotFound, "get " + name + ": no such volume"})
		}
		return policy.Object{}, fmt.Errorf("look up volume %q: %w", name, err)
	}
	return r.learnVolume(v), nil
}

// ReserveVolume makes the volume with these labels, or finds the one that has the
// name already: the Engine decides which, in one step. Whether it was made shows by
// the mark among the labels.
func (r *Resources) ReserveVolume(ctx context.Context, name string, labels map[string]string) (obj policy.Object, made bool, err error) {
	var v Volume
	err = r.client.postJSON(ctx, "/volumes/create", map[string]any{"Name": name, "Labels": labels}, &v)
	if err != nil {
		return policy.Object{}, false, fmt.Errorf("reserve volume %q: %w", name, err)
	}
	mark := labels[policy.LabelVolumeMark]
	return r.learnVolume(v), mark != "" && v.Labels[policy.LabelVolumeMark] == mark, nil
}

func (r *Resources) learnVolume(v Volume) policy.Object {
	obj := policy.Object{Kind: "volume", ID: v.Name, Ref: v.Name, Owner: policy.OwnerOf(v.Labels), Protected: policy.IsProtected(v.Labels)}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.volumes) > maxLearnt {
		clear(r.volumes)
	}
	r.volumes[v.Name] = obj.Owner
	return obj
}

// Owner returns the owner of the network or volume that an event is about; known
// is false where nobody can tell any more. last says that the event is the last
// about it.
func (r *Resources) Owner(ctx context.Context, kind, id string, last bool) (owner string, known bool) {
	r.mu.Lock()
	owners := r.volumes
	if kind == "network" {
		owners = r.networks
	}
	owner, known = owners[id]
	r.mu.Unlock()
	if known || last {
		return owner, known
	}
	if kind == "network" {
		_, err := r.Networks(ctx)
		if err != nil {
			return "", false
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		owner, known = r.networks[id]
		return owner, known
	}
	obj, err := r.Volume(ctx, id)
	return obj.Owner, err == nil
}

// An ImageConfig is what an image says of its containers.
type ImageConfig struct {
	ID string
	// User is whom they run as, as for docker run --user.
	User string
	// Volumes are the paths that it declares as volumes, in order.
	Volumes []string
	// WorkingDir is where they start, "" for /.
	WorkingDir string
	// Labels are what its containers inherit, Env their environment.
	Labels map[string]string
	Env    []string
	// Exposed are how many ports -P publishes.
	Exposed int
}

// ImageConfig asks for what an image says of its containers.
// Errors: ErrNotFound with the Engine's own words, which make docker run pull.
func (r *Resources) ImageConfig(ctx context.Context, image string) (ImageConfig, error) {
	if image == "" {
		return ImageConfig{}, nil
	}
	var one struct {
		ID     string
		Config struct {
			User       string
			Volumes    map[string]struct{}
			WorkingDir string
			Labels     map[string]string
			Env        []string

			ExposedPorts map[string]struct{}
		}
	}
	err := r.client.getJSON(ctx, "/images/"+url.PathEscape(image)+"/json", &one)
	if err != nil {
		return ImageConfig{}, fmt.Errorf("look up image %q: %w", image, err)
	}
	return ImageConfig{one.ID, one.Config.User, slices.Sorted(maps.Keys(one.Config.Volumes)), one.Config.WorkingDir, one.Config.Labels, one.Config.Env, len(one.Config.ExposedPorts)}, nil
}

// States counts a user's containers by state: running, exited, paused and so on.
func (r *Resources) States(ctx context.Context, user string) (map[string]int, error) {
	filter, err := json.Marshal(map[string][]string{"label": {policy.LabelUser + "=" + user}})
	if err != nil {
		return nil, fmt.Errorf("count containers: %w", err)
	}
	var list []struct{ State string }
	if err := r.client.getJSON(ctx, "/containers/json?"+url.Values{"all": {"1"}, "filters": {string(filter)}}.Encode(), &list); err != nil {
		return nil, fmt.Errorf("count containers: %w", err)
	}
	states := make(map[string]int)
	for _, c := range list {
		states[c.State]++
	}
	return states, nil
}
