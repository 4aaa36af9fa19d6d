package engine

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// Images is what the proxy asks the Engine about images. It asks each time:
// whoever changes images can wait for that.
type Images struct{ client *Client }

// NewImages returns Images that ask client.
func NewImages(client *Client) *Images { return &Images{client} }

// An Image is what decides about an image.
type Image struct {
	ID     string `json:"Id"`
	Parent string `json:"ParentId"`
	// RepoTags and RepoDigests are its names in the short form.
	RepoTags    []string
	RepoDigests []string
	Labels      map[string]string
	// Size is in bytes, with all of its layers.
	Size    int64
	Created int64
}

// All lists all images, those of build steps too.
func (m *Images) All(ctx context.Context) (ImageList, error) {
	var list ImageList
	if err := m.client.getJSON(ctx, "/images/json?all=1", &list); err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	for i := range list {
		// Engines before API 1.43 list names for those that have none.
		list[i].RepoTags = slices.DeleteFunc(list[i].RepoTags, func(s string) bool { return s == "<none>:<none>" })
		list[i].RepoDigests = slices.DeleteFunc(list[i].RepoDigests, func(s string) bool { return strings.HasSuffix(s, "<none>") })
	}
	return list, nil
}

// Containers lists the containers, running or not, that are made of an image or of
// one that was built on it.
func (m *Images) Containers(ctx context.Context, imageID string) ([]Container, error) {
	filter, err := json.Marshal(map[string][]string{"ancestor": {imageID}})
	if err != nil {
		return nil, fmt.Errorf("list containers of an image: %w", err)
	}
	var list []Container
	err = m.client.getJSON(ctx, "/containers/json?"+url.Values{"all": {"1"}, "filters": {string(filter)}}.Encode(), &list)
	if err != nil {
		return nil, fmt.Errorf("list containers of image %.19s: %w", imageID, err)
	}
	return list, nil
}

// Digest asks the registry, through the Engine, what a name stands for; auth is
// the client's X-Registry-Auth header, which is not kept.
func (m *Images) Digest(ctx context.Context, name, auth string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.client.prefix+"/distribution/"+name+"/json", nil)
	if err != nil {
		return "", fmt.Errorf("ask the registry for %s: %w", name, err)
	}
	if auth != "" {
		req.Header.Set("X-Registry-Auth", auth)
	}
	resp, err := m.client.do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer struct{ Descriptor struct{ Digest string } }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(&answer); err != nil {
		return "", fmt.Errorf("ask the registry for %s: %w", name, err)
	}
	return answer.Descriptor.Digest, nil
}

// Platform asks for an image's platform, such as linux/amd64.
func (m *Images) Platform(ctx context.Context, imageID string) (string, error) {
	var one struct{ Os, Architecture string }
	err := m.client.getJSON(ctx, "/images/"+imageID+"/json", &one)
	return one.Os + "/" + one.Architecture, err
}

// Removed is one line of what a removal did.
type Removed struct {
	Untagged string `json:",omitempty"`
	Deleted  string `json:",omitempty"`
}

// Remove removes an image, or one of its names, unless a container uses it.
// noprune keeps the images that it was built on.
func (m *Images) Remove(ctx context.Context, ref string, noprune bool) ([]Removed, error) {
	path := "/images/" + ref
	if noprune {
		path += "?noprune=1"
	}
	var done []Removed
	err := m.client.sendJSON(ctx, http.MethodDelete, path, nil, &done)
	return done, err
}

// Explain asks the Engine for an image that was not found, for the words in which
// it says so.
func (m *Images) Explain(ctx context.Context, ref string) error {
	if _, err := reference.ParseAnyReference(ref); err != nil {
		return &StatusError{http.StatusBadRequest, err.Error()}
	}
	var one struct{ ID string }
	err := m.client.getJSON(ctx, "/images/"+url.PathEscape(ref)+"/json", &one)
	if err == nil {
		return &StatusError{http.StatusConflict, "the image " + ref + " came to be at this moment; try again"}
	}
	return err
}

// An ImageList finds images.
type ImageList []Image

// A Found is what a reference says.
type Found struct {
	*Image
	// Tag is the short form of the reference, where it is a name with a tag.
	Tag string
	// Named is true where the reference is a name of any kind, and not an ID.
	Named bool
}

// Find resolves a reference as the Engine does: a name first, then an ID or its
// prefix. It returns nil where there is none, or more than one.
func (l ImageList) Find(ref string) (Found, bool) {
	parsed, err := reference.ParseAnyReference(ref)
	if err != nil {
		return Found{}, false
	}
	named, isName := parsed.(reference.Named)
	if !isName {
		if digested, ok := parsed.(reference.Digested); ok {
			return l.prefixed(digested.Digest().String())
		}
		return Found{}, false
	}
	if d, ok := named.(reference.Digested); ok {
		// The Engine leaves a tag beside a digest out of account.
		short := reference.FamiliarName(named) + "@" + d.Digest().String()
		for i := range l {
			if slices.Contains(l[i].RepoDigests, short) {
				return Found{Image: &l[i], Named: true}, true
			}
		}
		return Found{}, false
	}
	short := reference.FamiliarString(reference.TagNameOnly(named))
	if i := l.Tagged(short); i != nil {
		return Found{Image: i, Tag: short, Named: true}, true
	}
	return l.prefixed(ref)
}

// Tagged returns the image that has a tag, in its short form.
func (l ImageList) Tagged(tag string) *Image {
	for i := range l {
		if slices.Contains(l[i].RepoTags, tag) {
			return &l[i]
		}
	}
	return nil
}

// prefixed finds an image by its ID, or by a prefix that no other shares.
func (l ImageList) prefixed(prefix string) (Found, bool) {
	prefix = strings.TrimPrefix(prefix, "sha256:")
	if prefix == "" {
		return Found{}, false
	}
	var one *Image
	for i := range l {
		if strings.HasPrefix(strings.TrimPrefix(l[i].ID, "sha256:"), prefix) {
			if one != nil && one.ID != l[i].ID {
				return Found{}, false
			}
			one = &l[i]
		}
	}
	return Found{Image: one}, one != nil
}

// Lineage returns the IDs of the images that an image was built on, nearest first.
func (l ImageList) Lineage(id string) []string {
	parents := make(map[string]string, len(l))
	for i := range l {
		parents[l[i].ID] = l[i].Parent
	}
	var line []string
	for id = parents[id]; id != "" && len(line) <= len(l); id = parents[id] {
		line = append(line, id)
	}
	return line
}
