() => {
  // Gradio reports a slider's release for pointers only; keys, the number field and the reset button release it too.
  const release = (event) => {
    const slider = event.target.closest("#keep");
    if (slider) setTimeout(() => slider.querySelector("input[type=range]").dispatchEvent(new PointerEvent("pointerup", { bubbles: true })), 50);
  };
  document.addEventListener("keyup", (event) => {
    if (/^(Arrow|Page|Home|End|Enter)/.test(event.key)) release(event);
  });
  document.addEventListener("change", (event) => {
    if (event.target.type === "number") release(event);
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("button")) release(event);
  });
}
