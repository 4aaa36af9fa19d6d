package engine

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/singleflight"

	"github.com/ds01/ds01-proxy/policy"
)

// Passwd knows the users of images: an image's /etc/passwd and /etc/group are read
// once, from a container that is made for that and never started.
type Passwd struct {
	client *Client

	// reading are the images whose files are being read.
	reading singleflight.Group

	mu    sync.Mutex
	files map[string][2]string
}

// NewPasswd returns a Passwd that asks client.
func NewPasswd(client *Client) *Passwd {
	return &Passwd{client: client, files: make(map[string][2]string)}
}

// maxPasswd is the largest file of users that is read, in bytes, and maxImages how many
// images' are kept.
const (
	maxPasswd = 256 << 10
	maxImages = 64
)

// Lookup returns the ids of a user as a container of the image would have them; user
// is written as for docker run --user.
func (p *Passwd) Lookup(ctx context.Context, imageID, user string) (uid, gid uint32, err error) {
	name, group, _ := strings.Cut(user, ":")
	if uid, err := number(name); err == nil && group != "" {
		if gid, err := number(group); err == nil {
			return uid, gid, nil
		}
	}
	read, err, _ := p.reading.Do(imageID, func() (any, error) { return p.read(context.WithoutCancel(ctx), imageID) })
	files, _ := read.([2]string)
	if err != nil {
		return 0, 0, fmt.Errorf("users of image %.19s: %w", imageID, err)
	}
	line, found := userLine(files[0], name, 2)
	if found && len(line) > 3 {
		u, uerr := number(line[2])
		g, gerr := number(line[3])
		if err := errors.Join(uerr, gerr); err != nil {
			return 0, 0, fmt.Errorf("users of image %.19s: user %s: %w", imageID, name, err)
		}
		uid, gid = u, g
	} else if uid, err = number(name); err != nil {
		return 0, 0, &StatusError{http.StatusBadRequest, "unable to find user " + name + ": no matching entries in passwd file"}
	}
	if group == "" {
		return uid, gid, nil
	}
	if line, found := userLine(files[1], group, 2); found && len(line) > 2 {
		gid, err = number(line[2])
	} else if gid, err = number(group); err != nil {
		return 0, 0, &StatusError{http.StatusBadRequest, "unable to find group " + group + ": no matching entries in group file"}
	}
	return uid, gid, err
}

// userLine finds a line of a file of users by its name or its number.
func userLine(file, name string, numberAt int) ([]string, bool) {
	for line := range strings.Lines(file) {
		if fields := strings.Split(strings.TrimSpace(line), ":"); fields[0] == name {
			return fields, true
		}
	}
	for line := range strings.Lines(file) {
		if fields := strings.Split(strings.TrimSpace(line), ":"); len(fields) > numberAt && fields[numberAt] == name {
			return fields, true
		}
	}
	return nil, false
}

func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err
}

func (p *Passwd) read(ctx context.Context, imageID string) ([2]string, error) {
	p.mu.Lock()
	files, known := p.files[imageID]
	p.mu.Unlock()
	if known {
		return files, nil
	}
	var made struct{ ID string }
	err := p.client.postJSON(ctx, "/containers/create", map[string]any{
		"Image": imageID, "Entrypoint": []string{"/none"}, "NetworkDisabled": true,
		// What the image says of owners would hold otherwise.
		"Labels": map[string]string{policy.LabelManaged: "true", policy.LabelProtected: "true", policy.LabelUser: "", policy.LabelLegacyUser: ""},
	}, &made)
	if err != nil {
		return files, err
	}
	defer func() {
		resp, err := p.client.send(context.WithoutCancel(ctx), http.MethodDelete, "/containers/"+made.ID+"?v=1&force=1", nil)
		if err == nil {
			resp.Body.Close()
		}
	}()
	for i, path := range []string{"/etc/passwd", "/etc/group"} {
		if files[i], err = p.file(ctx, made.ID, path); err != nil && !errors.Is(err, ErrNotFound) {
			return files, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.files) >= maxImages {
		clear(p.files)
	}
	p.files[imageID] = files
	return files, nil
}

// file reads one file of a container.
func (p *Passwd) file(ctx context.Context, container, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, questionTimeout)
	defer cancel()
	resp, err := p.client.get(ctx, "/containers/"+container+"/archive?path="+url.QueryEscape(path))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	archive := tar.NewReader(resp.Body)
	h, err := archive.Next()
	if err != nil {
		return "", err
	}
	if h.Typeflag != tar.TypeReg {
		return "", fmt.Errorf("%s is not a plain file", path)
	}
	text, err := io.ReadAll(io.LimitReader(archive, maxPasswd))
	return string(text), err
}
