// Applies the reader's choice of light or dark before anything is drawn.
{
  const chosen = localStorage.getItem("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
}
