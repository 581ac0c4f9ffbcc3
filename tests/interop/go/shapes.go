package main

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/riverqueue/river"
)

// Job args of many shapes. Each has its twin among the Python classes of tests/interop/shapes.py: same kind, same fields in the
// same order, same marks.

type Empty struct{}

func (Empty) Kind() string { return "shape_empty" }

type Simple struct {
	Name  string `json:"name"`
	Count int    `json:"count"`
}

func (Simple) Kind() string { return "shape_simple" }

type inner struct {
	Zeta  int    `json:"zeta"`
	Alpha string `json:"alpha"`
	Mid   bool   `json:"mid"`
}

// The top level is sorted before hashing, nested objects keep the order of their struct.
type Ordered struct {
	Zeta   int    `json:"zeta"`
	Nested inner  `json:"nested"`
	Alpha  string `json:"alpha"`
	Mid    bool   `json:"Mid"`
	Under  int    `json:"_under"`
	Dotted string `json:"a.b"`
	Slash  string `json:"path/key"`
}

func (Ordered) Kind() string { return "shape_ordered" }

type Floats struct {
	One   float64            `json:"one"`
	Many  []float64          `json:"many"`
	Table map[string]float64 `json:"table"`
}

func (Floats) Kind() string { return "shape_floats" }

type Integers struct {
	Small    int8   `json:"small"`
	Large    int64  `json:"large"`
	Unsigned uint64 `json:"unsigned"`
	Flag     bool   `json:"flag"`
}

func (Integers) Kind() string { return "shape_integers" }

type Times struct {
	At    time.Time   `json:"at"`
	Maybe *time.Time  `json:"maybe"`
	Later *time.Time  `json:"later,omitempty"`
	Items []time.Time `json:"items"`
}

func (Times) Kind() string { return "shape_times" }

type Omitting struct {
	Text    string            `json:"text,omitempty"`
	Number  int               `json:"number,omitempty"`
	Real    float64           `json:"real,omitempty"`
	Flag    bool              `json:"flag,omitempty"`
	Items   []string          `json:"items,omitempty"`
	Table   map[string]string `json:"table,omitempty"`
	Pointer *string           `json:"pointer,omitempty"`
	Object  *inner            `json:"object,omitempty"`
	Last    string            `json:"last"`
}

func (Omitting) Kind() string { return "shape_omitting" }

type Nullable struct {
	Text   *string           `json:"text"`
	Number *int              `json:"number"`
	Object *inner            `json:"object"`
	Items  []string          `json:"items"`
	Table  map[string]string `json:"table"`
}

func (Nullable) Kind() string { return "shape_nullable" }

type Collections struct {
	Objects []inner          `json:"objects"`
	ByName  map[string]inner `json:"by_name"`
	Matrix  [][]int          `json:"matrix"`
	Labels  map[string]any   `json:"labels"`
	Pair    [2]string        `json:"pair"`
}

func (Collections) Kind() string { return "shape_collections" }

type Bytes struct {
	Data []byte `json:"data"`
}

func (Bytes) Kind() string { return "shape_bytes" }

type Selected struct {
	TraceID    string `json:"trace_id"`
	CustomerID string `json:"customer_id" river:"unique"`
	Amount     int    `json:"amount" river:"unique"`
	Note       string `json:"note"`
}

func (Selected) Kind() string { return "shape_selected" }

type customer struct {
	Name   string `json:"name"`
	ID     string `json:"id" river:"unique"`
	Region string `json:"region,omitempty" river:"unique"`
}

type SelectedNested struct {
	Subject  string    `json:"subject" river:"unique"`
	Customer customer  `json:"customer"`
	TraceID  string    `json:"trace_id"`
	Label    *string   `json:"label" river:"unique"`
	Extra    *customer `json:"-"`
}

func (SelectedNested) Kind() string { return "shape_selected_nested" }

type SelectedPointer struct {
	TraceID  string    `json:"trace_id"`
	Customer *customer `json:"customer"`
}

func (SelectedPointer) Kind() string { return "shape_selected_pointer" }

type SelectedWhole struct {
	TraceID string            `json:"trace_id"`
	Object  inner             `json:"object" river:"unique"`
	Table   map[string]string `json:"table" river:"unique"`
	Items   []int             `json:"items" river:"unique"`
}

func (SelectedWhole) Kind() string { return "shape_selected_whole" }

type SelectedOmitting struct {
	Left  string `json:"left,omitempty" river:"unique"`
	Right int    `json:"right,omitempty" river:"unique"`
	Other string `json:"other"`
}

func (SelectedOmitting) Kind() string { return "shape_selected_omitting" }

// Two fields of one struct type, each with marked fields inside.
type SelectedSiblings struct {
	Payer   customer `json:"payer"`
	Payee   customer `json:"payee"`
	TraceID string   `json:"trace_id"`
}

func (SelectedSiblings) Kind() string { return "shape_selected_siblings" }

// The same, with the fields themselves marked too.
type SelectedSiblingsMarked struct {
	Payer   customer `json:"payer" river:"unique"`
	Payee   customer `json:"payee" river:"unique"`
	TraceID string   `json:"trace_id"`
}

func (SelectedSiblingsMarked) Kind() string { return "shape_selected_siblings_marked" }

type Base struct {
	TenantID string `json:"tenant_id" river:"unique"`
	Actor    string `json:"actor"`
}

type Embedded struct {
	Base

	Subject string `json:"subject" river:"unique"`
	Body    string `json:"body"`
}

func (Embedded) Kind() string { return "shape_embedded" }

type EmbeddedPlain struct {
	Common

	Zed  string `json:"zed"`
	Able int    `json:"able"`
}

type Common struct {
	Middle string `json:"middle"`
	Flag   bool   `json:"flag"`
}

func (EmbeddedPlain) Kind() string { return "shape_embedded_plain" }

// Selected fields whose names hold what a path language would take for syntax.
type SelectedOddNames struct {
	Dotted string `json:"a.b" river:"unique"`
	Slash  string `json:"path/key" river:"unique"`
	Colon  string `json:":lead" river:"unique"`
	Accent string `json:"é" river:"unique"`
	Other  string `json:"other"`
}

func (SelectedOddNames) Kind() string { return "shape_selected_odd_names" }

// Raw is any kind with any JSON object. It has no fields, so nothing of it can be selected.
type Raw struct {
	kind string
	args json.RawMessage
}

func (r Raw) Kind() string { return r.kind }

func (r Raw) MarshalJSON() ([]byte, error) { return r.args, nil }

func decode[T river.JobArgs](raw json.RawMessage) (river.JobArgs, error) {
	var args T
	err := json.Unmarshal(raw, &args)
	return args, err
}

var shapes = map[string]func(json.RawMessage) (river.JobArgs, error){
	"Empty":                  decode[Empty],
	"Simple":                 decode[Simple],
	"Ordered":                decode[Ordered],
	"Floats":                 decode[Floats],
	"Integers":               decode[Integers],
	"Times":                  decode[Times],
	"Omitting":               decode[Omitting],
	"Nullable":               decode[Nullable],
	"Collections":            decode[Collections],
	"Bytes":                  decode[Bytes],
	"Selected":               decode[Selected],
	"SelectedNested":         decode[SelectedNested],
	"SelectedPointer":        decode[SelectedPointer],
	"SelectedWhole":          decode[SelectedWhole],
	"SelectedOmitting":       decode[SelectedOmitting],
	"SelectedSiblings":       decode[SelectedSiblings],
	"SelectedSiblingsMarked": decode[SelectedSiblingsMarked],
	"Embedded":               decode[Embedded],
	"EmbeddedPlain":          decode[EmbeddedPlain],
	"SelectedOddNames":       decode[SelectedOddNames],
}

func buildArgs(shape, kind string, raw json.RawMessage) (river.JobArgs, error) {
	if shape == "" {
		if kind == "" {
			return nil, errors.New("expected a shape or a kind")
		}
		return Raw{kind: kind, args: raw}, nil
	}
	build, ok := shapes[shape]
	if !ok {
		return nil, errors.New("unknown shape " + shape)
	}
	return build(raw)
}

func shapeNames(context.Context, *oracle, json.RawMessage) (any, error) {
	return slices.Sorted(maps.Keys(shapes)), nil
}
